"""Checkpoints on their way in and out: from official files to our form of weights, and back."""
