"""Critics for the generator of digits: scores of images and their labels (Sauer & Geiger, ICLR 2021, appendix)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfmlc_jax.models.generators.mnist import SIZE, around_one
from cfmlc_jax.models.layers.convolution import Conv
from cfmlc_jax.models.layers.linear import Dense
from cfmlc_jax.models.layers.norms import BatchNorm
from cfmlc_jax.models.torch_names import Table

_SLOPE = 0.2
_small = nn.initializers.normal(0.02)
_standard = nn.initializers.normal(1.0)


class LinearCritic(nn.Module):
    """Scores by linear layers on all pixels and the label: [b, 32, 32, 3], [b] -> [b], at least float32.

    Training uses the random stream "dropout", unless `dropout` is 0.

    Attributes:
        num_classes: number of labels, and features of their embedding.
        ndf: features of the three hidden layers.
        dropout: probability of dropout in the second and third layer.
        dtype: type of the computation.
    """

    num_classes: int = 10
    ndf: int = 512
    dropout: float = 0.4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, labels, *, train: bool):
        k = self.num_classes
        label = nn.Embed(k, k, embedding_init=_standard, name="label_embedding")(labels)
        # Channel by channel, the order of PyTorch's images, so that its weights can be used.
        pixels = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        x = jnp.concatenate([pixels, label], axis=-1)
        x = _hidden(self, x, train)
        return _scores(Dense(1, dtype=self.dtype, name="linear4")(x))

    def example(self) -> tuple:
        """Arguments for a batch of one image, to infer shapes."""
        return _example()


class ProjectionCritic(nn.Module):
    """Scores by linear layers on all pixels, and by the label's product with their last features.

    [b, 32, 32, 3], [b] -> [b], at least float32. After Miyato and Koyama (ICLR 2018, arXiv:1802.05637). The label of
    the other critics is a few inputs among thousands. That is enough where it shows in the colours, too little where only
    the shape has it.

    Training uses the random stream "dropout", unless `dropout` is 0.

    Attributes:
        num_classes: number of labels.
        ndf: features of the three hidden layers.
        dropout: probability of dropout in the second and third layer.
        dtype: type of the computation.
    """

    num_classes: int = 10
    ndf: int = 512
    dropout: float = 0.4
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, labels, *, train: bool):
        x = images.reshape(len(images), -1)
        x = _hidden(self, x, train)
        embedding_init = nn.initializers.normal(self.ndf**-0.5)
        label = nn.Embed(self.num_classes, self.ndf, embedding_init=embedding_init, name="label_embedding")(
            labels
        )
        of_label = (x * label).sum(axis=-1, keepdims=True)
        return _scores(Dense(1, dtype=self.dtype, name="linear4")(x) + of_label)

    def example(self) -> tuple:
        """Arguments for a batch of one image, to infer shapes."""
        return _example()


class ConvCritic(nn.Module):
    """Scores by convolutions, with the label as a constant fourth channel: [b, 32, 32, 3], [b] -> [b], at least float32.

    Attributes:
        ndf: features of the first convolution.
        dtype: type of the computation.
    """

    num_classes: int = 10
    ndf: int = 32
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images, labels, *, train: bool):
        label = nn.Embed(self.num_classes, 1, embedding_init=_standard, name="label_embedding")(labels)
        plane = jnp.broadcast_to(label[:, None, None], (*images.shape[:-1], 1))
        x = jnp.concatenate([images, plane], axis=-1)
        layers = ((1, 3, 1), (2, 3, 1), (4, 4, 2), (4, 4, 2))
        for i, (width, kernel, stride) in enumerate(layers, 1):
            x = self._conv(width * self.ndf, kernel, stride, name=f"conv{i}")(x)
            norm = BatchNorm(scale_init=around_one(0.02), dtype=self.dtype, mapped=False, name=f"bn{i}")
            x = norm(x, train=train)
            x = jax.nn.leaky_relu(x, _SLOPE)
        # The reference pools 3×3 at stride 3 and so drops the last two rows and columns of 5×5.
        x = x[:, :3, :3].mean(axis=(1, 2), keepdims=True)
        return _scores(self._conv(1, 1, 1, name="conv5")(x)[:, 0, 0])

    def _conv(self, features, kernel, stride, name):
        return Conv(features, kernel, stride, self.dtype, padding=0, kernel_init=_small, name=name)

    def example(self) -> tuple:
        """Arguments for a batch of one image, to infer shapes."""
        return _example()


def _hidden(critic, x, train):
    """The last hidden features [b, ndf] of a critic of linear layers, in its scope."""
    x = jax.nn.leaky_relu(Dense(critic.ndf, dtype=critic.dtype, name="linear1")(x), _SLOPE)
    for i in (2, 3):
        x = Dense(critic.ndf, dtype=critic.dtype, name=f"linear{i}")(x)
        x = nn.Dropout(critic.dropout)(x, deterministic=not train)
        x = jax.nn.leaky_relu(x, _SLOPE)
    return x


def _scores(x):
    return x[:, 0].astype(jnp.promote_types(x.dtype, jnp.float32))


def _example():
    return jnp.zeros((1, SIZE, SIZE, 3)), jnp.zeros((1,), jnp.int32)


def _linear(num_classes, critic):
    return LinearCritic(num_classes, ndf=critic.ndf, dropout=critic.dropout)


def _projection(num_classes, critic):
    return ProjectionCritic(num_classes, ndf=critic.ndf, dropout=critic.dropout)


def _conv(num_classes, critic):
    return ConvCritic(num_classes, ndf=critic.ndf)


# Critics by name: (number of classes, section `critic` of a configuration) -> the module.
CRITICS = {"linear": _linear, "projection": _projection, "conv": _conv}

LINEAR_TORCH: Table = (
    ("linear1", "model.0"),
    ("linear2", "model.2"),
    ("linear3", "model.5"),
    ("linear4", "model.8"),
)
CONV_TORCH: Table = (
    ("conv1", "model.0"),
    ("bn1", "model.1"),
    ("conv2", "model.3"),
    ("bn2", "model.4"),
    ("conv3", "model.6"),
    ("bn3", "model.7"),
    ("conv4", "model.9"),
    ("bn4", "model.10"),
    ("conv5", "model.13"),
)
