"""Data sets of the catalogue, one module per family, with their rows in ``ROWS``."""
