"""From a picture and names to a result."""
