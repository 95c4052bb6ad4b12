"""Generators of images, their critics, and the networks that they are trained with."""
