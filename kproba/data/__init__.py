"""Datasets: kinds, index, tasks, splits, labels, images, augmentation and loaders."""
