"""MaskCLIP (ICML 2023): CLIP with one class token per mask."""
