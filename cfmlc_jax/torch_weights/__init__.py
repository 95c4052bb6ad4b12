"""Conversion of weights between PyTorch's files and our checkpoints."""
