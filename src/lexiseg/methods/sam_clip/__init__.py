"""SAM + CLIP: classify the masks of SAM's automatic mask generator by CLIP, without training."""
