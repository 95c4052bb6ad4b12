"""Long-tailed classification by de-confounded training and direct effects (Tang et al., NeurIPS 2020)."""
