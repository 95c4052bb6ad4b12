"""The counterfactual generator of 32 px digits (Sauer & Geiger, ICLR 2021, arXiv:2101.06046, section 4.1 and appendix).

It has three small networks, one for each mechanism of the image (`causal.mechanisms`): the digit's shape, the
digit's texture, and the background.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct
import jax
import jax.numpy as jnp

from cfmlc_jax.causal import mechanisms
from cfmlc_jax.models.layers.convolution import Conv
from cfmlc_jax.models.layers.linear import Dense
from cfmlc_jax.models.layers.norms import BatchNorm, instance_norm
from cfmlc_jax.models.layers.pooling import upsample_nearest
from cfmlc_jax.models.torch_names import Table

SIZE = 32
# Side of the map between the linear layer and the first convolution.
_FIRST = 8
_zeros = nn.initializers.zeros


def around_one(deviation: float):
    """Initialiser of a norm's scale: normal with mean 1."""

    def normal(key, shape):
        return 1 + deviation * jax.random.normal(key, shape)

    return normal


# Initialisers of kernels by name, as functions of the gain.
INITIALISERS: dict[str, Any] = {"orthogonal": nn.initializers.orthogonal, "normal": nn.initializers.normal}


def create(num_classes: int, generator: Any) -> "MnistGenerator":
    """The generator of section `generator` of a configuration."""
    return MnistGenerator(
        num_classes,
        latent=generator.latent,
        ngf=generator.ngf,
        kernel_init=INITIALISERS[generator.init](generator.gain),
        scale_init=around_one(generator.gain),
    )


@flax.struct.dataclass
class Composition:
    """A batch of composed images and their parts.

    image: [b, h, w, 3] in [−1, 1].
    mask: [b, h, w, 1], inside `mechanisms.MASK_RANGE`.
    foreground, background: [b, h, w, 3], shuffled, as used in the composition.
    shape: [b, h, w, 1], the mask before clamping.
    texture, scene: [b, h, w, 3], foreground and background before shuffling.
    """

    image: Any
    mask: Any
    foreground: Any
    background: Any
    shape: Any
    texture: Any
    scene: Any


class MnistGenerator(nn.Module):
    """Composed images from labels and noise: {mechanism: [b]}, {mechanism: [b, latent]} -> `Composition` of b.

    For images without intervention all mechanisms get the same inputs (`mechanisms.same_for_all`); for
    counterfactual images each mechanism has its own labels and noise.

    Attributes:
        num_classes: number of labels, and features of their embedding.
        latent: size of the normal noise.
        ngf: channels of the last block.
        kernel_init: initialiser of all convolutions and linear layers; biases start at 0.
        scale_init: initialiser of the batch norms' scales.
        dtype: type of the computation; parameters and statistics are float32.
    """

    num_classes: int = 10
    latent: int = 32
    ngf: int = 32
    kernel_init: Any = nn.initializers.orthogonal(0.5)
    scale_init: Any = around_one(0.5)
    dtype: Any = jnp.float32

    def setup(self):
        self.label_embedding = nn.Embed(
            self.num_classes, self.num_classes, embedding_init=nn.initializers.normal(1.0)
        )
        parts = (self.ngf, self.kernel_init, self.scale_init, self.dtype)
        self.shape, self.texture, self.background = ShapeNet(*parts), TextureNet(*parts), TextureNet(*parts)

    def __call__(self, labels: Mapping, noise: Mapping, offsets: Mapping, *, train: bool) -> Composition:
        """Compose images.

        Args:
            labels: {mechanism: [b]}, integers; or [b, num_classes], shares of the classes, to interpolate between labels.
            noise: {mechanism: [b, latent]}.
            offsets: {"texture": [b, 2], "background": [b, 2]}, offsets for `mechanisms.shuffle`.
            train: whether batch norms use the batch's statistics.
        """
        inputs = {
            name: jnp.concatenate([noise[name], self._embedded(labels[name])], axis=-1)
            for name in mechanisms.MECHANISMS
        }
        shape = self.shape(inputs[mechanisms.SHAPE], train=train)
        texture = self.texture(inputs[mechanisms.TEXTURE], train=train)
        scene = self.background(inputs[mechanisms.BACKGROUND], train=train)
        mask = mechanisms.clamp_mask(shape)
        foreground = mechanisms.shuffle(texture, offsets[mechanisms.TEXTURE])
        background = mechanisms.shuffle(scene, offsets[mechanisms.BACKGROUND])
        image = mechanisms.compose(mask, foreground, background)
        return Composition(image, mask, foreground, background, shape, texture, scene)

    def _embedded(self, labels):
        if labels.ndim == 1:
            return self.label_embedding(labels)
        return jnp.matmul(labels, self.label_embedding.embedding, precision="highest")

    def example(self) -> tuple:
        """Arguments for a batch of one image, to infer shapes."""
        labels, noise = jnp.zeros((1,), jnp.int32), jnp.zeros((1, self.latent))
        offsets = jnp.zeros((1, 2), jnp.int32)
        return tuple(mechanisms.same_for_all(x) for x in (labels, noise, offsets))


class ShapeNet(nn.Module):
    """Shapes, before they are clamped to masks, with mean 0 and variance 1 per image: [b, d] -> [b, 32, 32, 1]."""

    ngf: int
    kernel_init: Any
    scale_init: Any
    dtype: Any

    @nn.compact
    def __call__(self, x, *, train: bool):
        parts = (self.kernel_init, self.scale_init, self.dtype)
        x = instance_norm(_first_map(x, 2 * self.ngf, self.kernel_init, self.dtype))
        x = instance_norm(Block(self.ngf, *parts, name="block1")(x, train=train))
        return instance_norm(Block(1, *parts, name="block2")(x, train=train))


class TextureNet(nn.Module):
    """Textures, or backgrounds, in [−1, 1]: [b, d] -> [b, 32, 32, 3]."""

    ngf: int
    kernel_init: Any
    scale_init: Any
    dtype: Any

    @nn.compact
    def __call__(self, x, *, train: bool):
        parts = (self.kernel_init, self.scale_init, self.dtype)
        x = _first_map(x, 2 * self.ngf, self.kernel_init, self.dtype)
        x = Block(2 * self.ngf, *parts, name="block1")(x, train=train)
        x = Block(self.ngf, *parts, name="block2")(x, train=train)
        x = Conv(
            3,
            3,
            dtype=self.dtype,
            use_bias=True,
            kernel_init=self.kernel_init,
            bias_init=_zeros,
            name="to_rgb",
        )(x)
        return jnp.tanh(_norm(self.scale_init, self.dtype, "bn_rgb")(x, train=train))


class Block(nn.Module):
    """Upsampling, 3×3 convolution, norm, leaky ReLU: [b, h, w, c] -> [b, 2h, 2w, features]."""

    features: int
    kernel_init: Any
    scale_init: Any
    dtype: Any

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = upsample_nearest(x)
        x = Conv(self.features, 3, dtype=self.dtype, kernel_init=self.kernel_init, name="conv")(x)
        return jax.nn.leaky_relu(_norm(self.scale_init, self.dtype, "bn")(x, train=train), 0.2)


def _norm(scale_init, dtype, name):
    return BatchNorm(scale_init=scale_init, dtype=dtype, mapped=False, name=name)


def _first_map(x, c, kernel_init, dtype):
    """A map by a linear layer, whose outputs are in PyTorch's order (c, h, w): [b, d] -> [b, 8, 8, c]."""
    x = Dense(c * _FIRST**2, kernel_init=kernel_init, bias_init=_zeros, dtype=dtype, name="linear")(x)
    return x.reshape(-1, c, _FIRST, _FIRST).transpose(0, 2, 3, 1)


_TEXTURE = (
    ("linear", "0"),
    (r"block1\.conv", "3"),
    (r"block1\.bn", "4"),
    (r"block2\.conv", "7"),
    (r"block2\.bn", "8"),
    ("to_rgb", "10"),
    ("bn_rgb", "11"),
)
TORCH: Table = (
    ("label_embedding", "label_emb"),
    (r"shape\.linear", "f_shape.0"),
    (r"shape\.block1\.conv", "f_shape.4"),
    (r"shape\.block1\.bn", "f_shape.5"),
    (r"shape\.block2\.conv", "f_shape.9"),
    (r"shape\.block2\.bn", "f_shape.10"),
    *((rf"texture\.{ours}", f"f_text1.{theirs}") for ours, theirs in _TEXTURE),
    *((rf"background\.{ours}", f"f_text2.{theirs}") for ours, theirs in _TEXTURE),
)
