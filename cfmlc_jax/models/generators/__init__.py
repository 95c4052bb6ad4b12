"""Image generators, their critics, and the frozen networks used in their training."""
