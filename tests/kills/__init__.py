"""Commands killed with SIGKILL at seeded moments: ``python -m tests.kills --count 100 --seed 0``.

After a kill every file of the output must be whole; the same command, started again, must end with the output of a run that
nothing interrupted, and leave no temporary file. Half of the kills come after a random time, half just before a random file
operation (opening to write, renaming, removing, making a folder), which is where an order of writing shows its faults.
"""
