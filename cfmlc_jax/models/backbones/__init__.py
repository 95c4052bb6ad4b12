"""Backbones: images -> feature maps and pooled features."""
