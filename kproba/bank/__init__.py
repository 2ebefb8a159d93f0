"""TODO bank."""
