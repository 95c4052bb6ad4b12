"""The counterfactual generator for ImageNet (Sauer & Geiger, ICLR 2021, arXiv:2101.06046, section 3.1).

Three BigGANs are the mechanisms; a U²-Net computes the mask from the shape's image. A fourth BigGAN, which is
not trained, generates the target of the composed image.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import flax.struct

from cfmlc_jax.causal import mechanisms
from cfmlc_jax.models.generators import biggan_deep, u2net
from cfmlc_jax.models.torch_names import Table


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
        mask = mechanisms.clamp_mask(self.u2net(shape, train=False)["saliency"])
        background_saliency = self.u2net(background, train=False)["saliency"]
        image = mechanisms.compose(mask, foreground, background)
        return Composition(image, target, mask, shape, foreground, background, background_saliency)

    def example(self) -> tuple:
        """Arguments for a batch of one image, to infer shapes."""
        return tuple(mechanisms.same_for_all(x) for x in self.generator(parent=None).example())


_PARTS = (
    ("target", "biggan_GT"),
    ("shape", "f_shape"),
    ("texture", "f_text"),
    ("background", "f_bg"),
)
TORCH: Table = (
    *(
        (rf"{ours}\.{pattern}", f"{theirs}.{replacement}")
        for ours, theirs in _PARTS
        for pattern, replacement in biggan_deep.TORCH
    ),
    *_PARTS,
    *((rf"u2net\.{pattern}", f"u2net.{replacement}") for pattern, replacement in u2net.TORCH),
)
