"""Layers with PyTorch's arithmetic."""
