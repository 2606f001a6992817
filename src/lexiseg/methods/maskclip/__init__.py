"""MaskCLIP (ICML 2023): class tokens of CLIP that look through masks."""
