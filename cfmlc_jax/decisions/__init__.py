"""Decisions of a trained classifier: thresholds of its classes, and its scores for other programs."""
