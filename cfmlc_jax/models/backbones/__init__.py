"""Backbones: images to maps and pooled features."""
