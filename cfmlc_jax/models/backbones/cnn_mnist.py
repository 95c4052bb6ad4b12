"""The small classifier of 32 px digits that is trained on counterfactual images (Sauer & Geiger, ICLR 2021)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfmlc_jax.models.layers.convolution import Conv
from cfmlc_jax.models.layers.initialisers import uniform_fan_in
from cfmlc_jax.models.layers.linear import Linear
from cfmlc_jax.models.layers.norms import BatchNorm
from cfmlc_jax.models.layers.pooling import max_pool
from cfmlc_jax.models.torch_names import Table


class MnistCNN(nn.Module):
    """Logits of images: [b, 32, 32, 3] in [−1, 1] -> [b, k], float32.

    Attributes:
        dtype: type of the computation; parameters and statistics are float32.
    """

    num_classes: int = 10
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, *, train: bool):
        # The first layer is a batch norm of the pixels.
        x = BatchNorm(dtype=self.dtype, mapped=False, name="bn")(images, train=train)
        x = max_pool(jax.nn.relu(self._conv(32, 5, 1, "conv1")(x)))
        x = jax.nn.relu(self._conv(32, 3, 1, "conv2")(x))
        x = jax.nn.relu(self._conv(64, 3, 2, "conv3")(x))
        x = jax.nn.relu(self._conv(64, 3, 1, "conv4")(x))
        # The reference pools 7×7 pixels and so drops the last row and column of 8×8.
        x = x[:, :7, :7].mean(axis=(1, 2), dtype=jnp.promote_types(x.dtype, jnp.float32))
        return Linear(self.num_classes, name="classifier")(x)

    def _conv(self, features, kernel, stride, name):
        return Conv(
            features, kernel, stride, self.dtype, use_bias=True, kernel_init=uniform_fan_in, name=name
        )

    def example(self) -> tuple:
        """Arguments for a batch of one image, to infer shapes."""
        return (jnp.zeros((1, 32, 32, 3)),)


TORCH: Table = (
    ("bn", "model.0"),
    ("conv1", "model.1"),
    ("conv2", "model.4"),
    ("conv3", "model.6"),
    ("conv4", "model.8"),
    ("classifier", "cls.0"),
)
