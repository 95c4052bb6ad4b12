"""Initialisers of PyTorch and torchvision."""

import flax.linen as nn
import jax

# torchvision's: normal with variance 2 / (outputs × kernel area).
kaiming_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# PyTorch's: uniform within ±1/√(inputs per output).
uniform_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def uniform_within(bound: float):
    """Initialiser: uniform within ±bound. For PyTorch's biases the bound is 1/√(inputs per output)."""

    def uniform(key, shape):
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    return uniform
