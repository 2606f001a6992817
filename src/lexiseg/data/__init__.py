"""Pictures and, later, data sets: how they are found and read."""
