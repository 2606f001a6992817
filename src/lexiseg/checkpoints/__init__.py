"""Conversion of official checkpoints to lexiseg's weights and back."""
