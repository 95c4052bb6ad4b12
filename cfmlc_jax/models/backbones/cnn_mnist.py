"""The small backbone of the classifier of 32 px digits by Sauer & Geiger (ICLR 2021, arXiv:2101.06046).

With the linear head it is the reference's classifier; pixels are in [−1, 1] (normalisation "half").
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfmlc_jax.models.layers import remat
from cfmlc_jax.models.layers.convolution import Conv
from cfmlc_jax.models.layers.initialisers import uniform_fan_in
from cfmlc_jax.models.layers.norms import BatchNorm
from cfmlc_jax.models.layers.pooling import average_pool, max_pool
from cfmlc_jax.models.torch_names import TorchNames


class MnistCNN(nn.Module):
    """Features of images [b, 32, 32, 3]: the last map as "map" [b, 8, 8, 64], and "pooled" float32 [b, 64].

    Attributes:
        dtype: type of the computation; parameters and statistics are float32.
        norm: `BatchNorm` with its options, except its name.
        remat: one of `remat.MODES`; all convolutions are one block.
    """

    dtype: Any = jnp.float32
    norm: Any = BatchNorm
    remat: str = remat.NONE

    @nn.compact
    def __call__(self, images, *, train: bool):
        x = remat.block(self.remat, lambda self, x: self._map(x, train), self, images)
        # The reference pools 7×7 pixels and so drops the last row and column of 8×8.
        return {"map": x, "pooled": average_pool(x[:, :7, :7])}

    def _map(self, images, train):
        # The first layer is a batch norm of the pixels.
        x = self.norm(name="bn")(images, train=train)
        x = max_pool(jax.nn.relu(self._conv(32, 5, 1, "conv1")(x)))
        x = jax.nn.relu(self._conv(32, 3, 1, "conv2")(x))
        x = jax.nn.relu(self._conv(64, 3, 2, "conv3")(x))
        return jax.nn.relu(self._conv(64, 3, 1, "conv4")(x))

    def _conv(self, features, kernel, stride, name):
        return Conv(
            features, kernel, stride, self.dtype, use_bias=True, kernel_init=uniform_fan_in, name=name
        )


TORCH = TorchNames(
    modules=(
        ("bn", "model.0"),
        ("conv1", "model.1"),
        ("conv2", "model.4"),
        ("conv3", "model.6"),
        ("conv4", "model.8"),
    ),
    stem="model.1.weight",
    head="cls.0",
    query2label="backbone.0.body",
    normalisation="half",
    counts_batches=True,
)
