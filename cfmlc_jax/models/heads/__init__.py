"""Heads: features of views to logits."""
