"""Flax modules: layers, backbones (one file per family), heads, generators, and the classifier of views."""
