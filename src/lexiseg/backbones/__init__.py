"""Frozen networks behind one interface each: what every CLIP and every SAM declares and does."""
