"""TODO methods.losses."""
