"""Pure functions of tensors: masks, run lengths, points."""
