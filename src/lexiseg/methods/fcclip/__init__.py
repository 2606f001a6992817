"""FC-CLIP: a masked-attention decoder on one frozen convolutional CLIP."""
