"""The papers' tables and figures as data, and how lexiseg reproduces them: `lexiseg reproduce`.

tables   what is trained and measured for each row, ``assets/reproduce.yaml``
plan     the commands of a table on this machine, and what is missing for them
report   the results of these commands beside the published numbers
"""
