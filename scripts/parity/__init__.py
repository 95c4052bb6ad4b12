"""Compares our numbers with those of the PyTorch reference."""
