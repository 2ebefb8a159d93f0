"""Uses what a step has learned: segment images, print facts, export a model file."""
