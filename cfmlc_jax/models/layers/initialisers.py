"""How PyTorch and torchvision draw the weights of a new layer."""

import flax.linen as nn
import jax

# torchvision's: variance 2 / (outputs × kernel area).
kaiming_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
# PyTorch's own: uniform within ±1/√(inputs of an output).
uniform_fan_in = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


def uniform_within(bound: float):
    """Initialiser: uniform within ±bound. PyTorch's biases start within ±1/√(inputs of an output)."""

    def uniform(key, shape):
        return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

    return uniform
