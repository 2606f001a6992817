"""Broken inputs: ``python -m tests.fuzz AREA --count 1500 --seed 0``.

An area is a module of this package with

    SUFFIX                  of the files it makes
    prepare(folder)         writes once what the inputs need beside them (pictures, a truth to compare with)
    inputs(random)          one input, drawn from a NumPy generator
    attempt(path)           does with it what a user would; beside it lies what `prepare` wrote

and a line in `AREAS`. An attempt may end in a result or in a `LexisegError`; anything else, a warning too, is a fault.
"""
