"""Drawing: class colours, overlays with names and legends, figure panels."""
