"""Linen modules: layers, one file per backbone family, heads, and the classifier of views."""
