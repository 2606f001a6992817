"""Parity with the official implementations: ``python -m tests.parity FOLDER`` compares us with recorded numbers."""
