"""Regions of a detector: their stored features, and the annotations of LVIS."""
