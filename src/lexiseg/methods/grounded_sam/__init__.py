"""Grounded-SAM: Grounding DINO finds boxes of names, SAM cuts out what is in them, without training."""
