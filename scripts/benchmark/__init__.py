"""Speed and memory of training, forward pass and input, beside PyTorch's."""
