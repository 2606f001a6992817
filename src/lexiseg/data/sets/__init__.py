"""The data sets of the catalogue, a module a family; each has its rows in ``ROWS``."""
