"""SAM + CLIP: segment everything, then name each piece. Nothing is trained."""
