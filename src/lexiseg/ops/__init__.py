"""Helpers without models: masks, run lengths, points, files, options."""
