"""Uses trained steps: segments images, prints facts, exports and packs models."""
