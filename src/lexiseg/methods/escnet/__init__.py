"""ESC-Net: CLIP's correlation maps as prompts of SAM's decoder blocks."""
