"""Drawing: colours of classes, overlays with names and legends."""
