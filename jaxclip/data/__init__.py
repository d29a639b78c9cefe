"""Datasets of pictures with captions or classes, and their batches."""
