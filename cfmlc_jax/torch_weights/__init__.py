"""PyTorch's files, read and written."""
