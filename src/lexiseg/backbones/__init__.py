"""Frozen backbones and mask proposers: CLIP, SAM and Mask2Former behind one interface each."""
