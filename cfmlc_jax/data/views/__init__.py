"""Decoding of images, and transforms from a record to its views."""
