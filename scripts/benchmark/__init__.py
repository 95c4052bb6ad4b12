"""Speed and memory of training, forward pass and input, compared with PyTorch."""
