"""ESC-Net: CLIP's correlations as prompts of SAM's decoder blocks."""
