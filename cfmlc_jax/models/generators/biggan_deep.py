"""BigGAN-deep, a generator of images by class (Brock et al., ICLR 2019), in the form of the published 256 px weights.

Its norms store statistics for 51 truncations of the noise; training uses them too and does not update them.
Layers are named after the PyTorch module of the published weights, so that weights are converted by a table.
"""

import math
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfmlc_jax.errors import InputError
from cfmlc_jax.models.generators.spectral import SpectralConv, SpectralDense
from cfmlc_jax.models.layers.linear import Dense
from cfmlc_jax.models.layers.pooling import max_pool2, upsample_nearest
from cfmlc_jax.models.torch_names import Table

# Epsilon of all norms and spectral norms.
EPSILON = 1e-4
REVERSED, LINEAR = "reversed", "linear"
_FIRST = 4
_COLOURS = 3


class BigGANDeep(nn.Module):
    """Generator: noise [b, z], classes [b, k] -> features of every stage, with "image" [b, h, w, 3] in [−1, 1].

    The generator does not scale the noise; the caller multiplies it by the truncation.

    Attributes:
        num_classes: k.
        noise_size: z.
        class_size: features of the class embedding.
        width: unit of the channel counts in `layers`.
        layers: (upsample, channels in, channels out) of every block, channels in multiples of the width.
        attention: index of the block before which self-attention is inserted.
        num_statistics: number of truncations from 0 to 1 for which norms store statistics.
        interpolation: of statistics between two of these truncations, `REVERSED` as in the reference
            (see `neighbours`) or `LINEAR`.
        dtype: type of the computation; parameters, statistics and norms' arithmetic are float32.
    """

    num_classes: int = 1000
    noise_size: int = 128
    class_size: int = 128
    width: int = 128
    layers: tuple[tuple[bool, int, int], ...] = (
        (False, 16, 16), (True, 16, 16), (False, 16, 16), (True, 16, 8), (False, 8, 8), (True, 8, 8),
        (False, 8, 8), (True, 8, 4), (False, 4, 4), (True, 4, 2), (False, 2, 2), (True, 2, 1),
    )  # fmt: skip
    attention: int = 8
    num_statistics: int = 51
    interpolation: str = REVERSED
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, noise, classes, truncation: float = 1.0, *, train: bool) -> dict[str, Any]:
        """Generate images, and return the features of every stage by name.

        Args:
            noise: [b, z].
            classes: [b, k], one-hot, or shares of several classes.
            truncation: chooses the stored statistics of the norms, in (0, 1].
            train: whether spectral norms take a step of the power iteration.
        """
        statistics = neighbours(truncation, self.num_statistics, self.interpolation)
        norm = {"statistics": statistics, "count": self.num_statistics, "dtype": self.dtype}
        embedded = Dense(self.class_size, use_bias=False, dtype=self.dtype, name="embeddings")(classes)
        condition = jnp.concatenate([noise.astype(self.dtype), embedded], axis=-1)
        channels = self.layers[0][1] * self.width
        x = self._dense(_FIRST**2 * channels, name="gen_z")(condition, train=train)
        features = {"embeddings": embedded, "gen_z": x}
        x = x.reshape(-1, _FIRST, _FIRST, channels)
        for i, (upsample, _, multiple) in enumerate(self.layers):
            if i == self.attention:
                name = f"layer{i}"
                x = features[name] = SelfAttention(self.dtype, name=name)(x, train=train)
            name = f"layer{i + (i >= self.attention)}"
            block = Block(multiple * self.width, upsample, norm, self.dtype, name=name)
            x = features[name] = block(x, condition, train=train)
        x = jax.nn.relu(TruncationNorm(**norm, name="bn")(x))
        # The published weights have `width` output channels, of which the first three are colours.
        x = SpectralConv(self.width, 3, epsilon=EPSILON, dtype=self.dtype, name="conv_to_rgb")(x, train=train)
        return features | {"image": jnp.tanh(x[..., :_COLOURS])}

    def _dense(self, features, name):
        return SpectralDense(features, use_bias=True, epsilon=EPSILON, dtype=self.dtype, name=name)

    @property
    def image_size(self) -> int:
        """Side of the images, pixels."""
        return _FIRST * 2 ** sum(upsample for upsample, _, _ in self.layers)

    def example(self) -> tuple:
        """Arguments for a batch of one image, to infer shapes."""
        return jnp.zeros((1, self.noise_size)), jnp.zeros((1, self.num_classes))


class Block(nn.Module):
    """Residual bottleneck with four conditional norms and convolutions: [b, h, w, c] -> [b, (2)h, (2)w, features].

    The shortcut has no weights: it keeps the first channels if the output has fewer than the input.
    """

    features: int
    upsample: bool
    norm: dict
    dtype: Any

    @nn.compact
    def __call__(self, x, condition, *, train: bool):
        middle = x.shape[-1] // 4
        shortcut = x[..., : self.features]
        for i, (features, kernel) in enumerate(((middle, 1), (middle, 3), (middle, 3), (self.features, 1))):
            x = ConditionalNorm(self.norm, self.dtype, name=f"bn_{i}")(x, condition, train=train)
            x = jax.nn.relu(x)
            if self.upsample and i == 1:
                x = upsample_nearest(x)
            conv = SpectralConv(features, kernel, epsilon=EPSILON, dtype=self.dtype, name=f"conv_{i}")
            x = conv(x, train=train)
        return x + (upsample_nearest(shortcut) if self.upsample else shortcut)


class SelfAttention(nn.Module):
    """Self-attention, x + γ · attention of every pixel to the map at half size: [b, h, w, c] -> [b, h, w, c].

    After Zhang et al., ICML 2019.
    """

    dtype: Any

    @nn.compact
    def __call__(self, x, *, train: bool):
        b, h, w, c = x.shape

        def conv(features, name):
            return SpectralConv(features, 1, False, EPSILON, self.dtype, name=name)

        queries = conv(c // 8, "theta")(x, train=train).reshape(b, h * w, -1)
        keys = max_pool2(conv(c // 8, "phi")(x, train=train)).reshape(b, h * w // 4, -1)
        values = max_pool2(conv(c // 2, "g")(x, train=train)).reshape(b, h * w // 4, -1)
        logits = jnp.einsum("bqd,bnd->bqn", queries, keys)
        weights = jax.nn.softmax(logits.astype(jnp.promote_types(self.dtype, jnp.float32)), axis=-1)
        gathered = jnp.einsum("bqn,bnd->bqd", weights.astype(self.dtype), values).reshape(b, h, w, -1)
        gamma = self.param("gamma", nn.initializers.zeros, (1,)).astype(self.dtype)
        return x + gamma[None, None, None] * conv(c, "o_conv")(gathered, train=train)


class ConditionalNorm(nn.Module):
    """`TruncationNorm` whose scale and offset are linear in the condition: [b, h, w, c], [b, d] -> [b, h, w, c]."""

    norm: dict
    dtype: Any

    @nn.compact
    def __call__(self, x, condition, *, train: bool):
        scale = SpectralDense(x.shape[-1], epsilon=EPSILON, dtype=self.dtype, name="scale")
        offset = SpectralDense(x.shape[-1], epsilon=EPSILON, dtype=self.dtype, name="offset")
        mean, var = _statistics(self, x.shape[-1], **self.norm)
        return _normalise(x, mean, var, 1 + scale(condition, train=train), offset(condition, train=train))


class TruncationNorm(nn.Module):
    """Batch norm with the stored statistics of a truncation: [b, h, w, c] -> [b, h, w, c]."""

    statistics: tuple
    count: int
    dtype: Any

    @nn.compact
    def __call__(self, x):
        c = x.shape[-1]
        scale = self.param("scale", nn.initializers.ones, (c,))
        bias = self.param("bias", nn.initializers.zeros, (c,))
        mean, var = _statistics(self, c, self.statistics, self.count, self.dtype)
        return _normalise(x, mean, var, scale[None], bias[None])


def _statistics(module, c, statistics, count, dtype):
    """Mean and variance [c], interpolated with the result of `neighbours`."""
    means = module.variable("batch_stats", "means", jnp.zeros, (count, c)).value
    variances = module.variable("batch_stats", "vars", jnp.ones, (count, c)).value
    return tuple(sum(share * table[i] for i, share in statistics) for table in (means, variances))


def _normalise(x, mean, var, scale, offset):
    """x normalised by mean and variance, then scaled and shifted by [b, c]: in float32, returned in the type of x."""
    wide = jnp.promote_types(x.dtype, jnp.float32)
    factor = scale.astype(wide) * jax.lax.rsqrt(var + EPSILON)[None]
    shift = offset.astype(wide) - mean[None] * factor
    return (x.astype(wide) * factor[:, None, None] + shift[:, None, None]).astype(x.dtype)


def neighbours(truncation: float, count: int, interpolation: str) -> tuple[tuple[int, float], ...]:
    """(index, share) of the stored statistics that are interpolated for a truncation; the shares sum to 1.

    With s = truncation · (count − 1), n its integer part and r the remainder, `LINEAR` takes the share 1 − r
    of entry n and r of entry n + 1. The reference swaps the two shares (`REVERSED`), so that statistics jump at
    every stored truncation. As it divides by the step in floating point, a few stored truncations have a
    remainder of about 1e−15 and get the next entry (.14, .28 and .56 of 51).

    Raises:
        InputError: a truncation outside (0, 1], or an unknown interpolation.
    """
    if not 0 < truncation <= 1:
        raise InputError(f"truncation {truncation} is not in (0, 1]; 1 is no truncation")
    if interpolation not in (REVERSED, LINEAR):
        raise InputError(f"interpolation {interpolation!r} is not one of {REVERSED}, {LINEAR}")
    rest, whole = math.modf(truncation / (1 / (count - 1)))
    lower = int(whole)
    if rest == 0:
        return ((lower, 1.0),)
    shares = (rest, 1 - rest) if interpolation == REVERSED else (1 - rest, rest)
    return (lower, shares[0]), (lower + 1, shares[1])


TORCH: Table = (
    (r"layer(\d+)\.(theta|phi|g|o_conv)", r"generator.layers.\1.snconv1x1_\2"),
    (r"layer(\d+)", r"generator.layers.\1"),
    ("(gen_z|bn|conv_to_rgb)", r"generator.\1"),
)
