"""The counterfactual generator for ImageNet (Sauer & Geiger, ICLR 2021, arXiv:2101.06046, section 3.1).

Three BigGANs are the mechanisms; a U²-Net computes the mask from the shape's image. A fourth BigGAN, which is
not trained, generates the target of the composed image.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import flax.struct
import jax.numpy as jnp

from cfmlc_jax.causal import mechanisms
from cfmlc_jax.models.generators import biggan_deep, u2net, vgg16


@flax.struct.dataclass
class Composition:
    """A batch of composed images and their parts.

    image: [b, h, w, 3] in [−1, 1].
    target: [b, h, w, 3], the frozen generator's image for the class and noise of the shape.
    mask: [b, h, w, 1], inside `mechanisms.MASK_RANGE`; the saliency of `shape`.
    shape: [b, h, w, 3], the image of the shape mechanism.
    foreground, background: [b, h, w, 3].
    background_saliency: [b, h, w, 1] in (0, 1), the saliency of `background`.
    """

    image: Any
    target: Any
    mask: Any
    shape: Any
    foreground: Any
    background: Any
    background_saliency: Any


class ImageNetGenerator(nn.Module):
    """Composed images from noise and classes: {mechanism: [b, z]}, {mechanism: [b, k]} -> `Composition` of b.

    Attributes:
        generator: `BigGANDeep` with its options; used for each mechanism and for the target.
        saliency: `U2Net` with its options.
    """

    generator: Any = biggan_deep.BigGANDeep
    saliency: Any = u2net.U2Net

    def setup(self):
        self.target, self.shape = self.generator(), self.generator()
        self.texture, self.background = self.generator(), self.generator()
        self.u2net = self.saliency()

    def __call__(
        self, noise: Mapping, classes: Mapping, truncation: float = 1.0, *, train: bool
    ) -> Composition:
        """Compose images.

        Args:
            noise: {mechanism: [b, z]}; the reference gives all mechanisms the same noise.
            classes: {mechanism: [b, k]}, one-hot or shares.
            truncation: as for `BigGANDeep`.
            train: whether the mechanisms' spectral norms take a step; the target and the U²-Net are never trained.
        """
        images = {
            name: generator(noise[name], classes[name], truncation, train=train)["image"]
            for name, generator in zip(mechanisms.MECHANISMS, (self.shape, self.texture, self.background))
        }
        shape, foreground, background = (images[name] for name in mechanisms.MECHANISMS)
        target = self.target(noise[mechanisms.SHAPE], classes[mechanisms.SHAPE], truncation, train=False)[
            "image"
        ]
        return self.composed(shape, foreground, background, target)

    def composed(self, shape, foreground, background, target) -> Composition:
        """The composition of the BigGANs' images, each [b, h, w, 3]."""
        # The saliency of both at once; both of an image stay on its device.
        both = jnp.stack([shape, background], axis=1)
        saliency = self.u2net(both.reshape(-1, *shape.shape[1:]), train=False)["saliency"]
        saliency = saliency.reshape(*both.shape[:-1], 1)
        mask = mechanisms.clamp_mask(saliency[:, 0])
        image = mechanisms.compose(mask, foreground, background)
        return Composition(image, target, mask, shape, foreground, background, saliency[:, 1])

    def biggan(self) -> biggan_deep.BigGANDeep:
        """One of the four BigGANs, unbound."""
        return self.generator(parent=None)

    def u2net_alone(self) -> u2net.U2Net:
        """The U²-Net, unbound."""
        return self.saliency(parent=None)

    def example(self) -> tuple:
        """Arguments for a batch of one image, to infer shapes."""
        return tuple(mechanisms.same_for_all(x) for x in self.biggan().example())


class Size(NamedTuple):
    """The sizes of all networks.

    biggan: fields of `BigGANDeep`.
    saliency: fields of `U2Net`.
    features: stages of `VGG16Features`.
    """

    biggan: Mapping[str, Any] = {}
    saliency: Mapping[str, Any] = {}
    features: tuple[tuple[int, int], ...] = vgg16.STAGES

    @property
    def image_size(self) -> int:
        """Side of the images, pixels."""
        return biggan_deep.BigGANDeep(**self.biggan).image_size

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return biggan_deep.BigGANDeep(**self.biggan).num_classes


# By name: the published networks, and small ones without published weights.
SIZES = {
    "biggan_deep_256": Size(),
    "tiny_32": Size(
        biggan={
            "num_classes": 10,
            "noise_size": 16,
            "class_size": 8,
            "width": 8,
            "layers": ((True, 4, 4), (True, 4, 2), (True, 2, 1)),
            "attention": 1,
            "num_statistics": 5,
        },
        saliency={
            "encoder": (u2net.Stage(2, 4, 8), u2net.Stage(2, 4, 8, dilated=True)),
            "decoder": (u2net.Stage(2, 4, 8),),
        },
        features=vgg16.SMALL_STAGES,
    ),
}


def create(
    size: Size, interpolation: str = biggan_deep.REVERSED, dtype: Any = jnp.float32
) -> ImageNetGenerator:
    """The generator of a size.

    Args:
        size: a value of `SIZES`, or another one.
        interpolation: as for `BigGANDeep`.
        dtype: type of the computation; parameters are float32.
    """
    return ImageNetGenerator(
        generator=functools.partial(
            biggan_deep.BigGANDeep, interpolation=interpolation, dtype=dtype, **size.biggan
        ),
        saliency=functools.partial(u2net.U2Net, dtype=dtype, **size.saliency),
    )


# The networks by our names and by the reference's; the names inside them are those of the networks alone.
TORCH_PARTS = {
    "target": "biggan_GT",
    "shape": "f_shape",
    "texture": "f_text",
    "background": "f_bg",
    "u2net": "u2net",
}
