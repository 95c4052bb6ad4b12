"""A head with one linear layer for each mechanism of an image: shape, texture and background.

After Sauer & Geiger, "Counterfactual Generative Networks" (ICLR 2021, arXiv:2101.06046), whose reference calls it
`InvariantEnsemble`.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from cfmlc_jax.causal.mechanisms import BACKGROUND, MECHANISMS, SHAPE, TEXTURE
from cfmlc_jax.errors import InputError
from cfmlc_jax.models.heads.output import HeadOutput
from cfmlc_jax.models.layers.linear import Linear
from cfmlc_jax.models.torch_names import Table


class MechanismHead(nn.Module):
    """Logits of each mechanism from pooled features, and their mean: [b, v, d] -> `HeadOutput` of [b, v, k].

    Attributes:
        num_classes: k, the same classes for every mechanism.
        attention: "none": the head has no branches for patches.
        dtype: ignored; the computation is float32, see `Linear`.

    Raises:
        InputError: branches for patches.
    """

    num_classes: int
    attention: str = "none"
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, features, *, train: bool):
        if self.attention != "none":
            raise InputError("the head 'mechanisms' has no branches for patches; use the head 'linear'")
        logits = {name: Linear(self.num_classes, name=name)(features["pooled"]) for name in MECHANISMS}
        return HeadOutput(sum(logits.values()) / len(logits), mechanisms=logits)


# Names of the reference's ensemble: its backbone is a list of torchvision's layers, with the four stages of a ResNet
# at places 4 to 7; a head is a list of which the linear layer is the second.
RESNET_TORCH: Table = (
    (r"backbone\.conv1", "backbone.0"),
    (r"backbone\.bn1", "backbone.1"),
    *(
        (rf"backbone\.layer{stage}_(\d+)\.{ours}", rf"backbone.{stage + 3}.\1{theirs}")
        for stage in (1, 2, 3, 4)
        for ours, theirs in (
            (r"downsample_conv", r".downsample.0"),
            (r"downsample_bn", r".downsample.1"),
            (r"(\w+)", r".\2"),
        )
    ),
    *(
        (rf"head\.{mechanism}", f"{name}.1")
        for mechanism, name in ((SHAPE, "m_shape"), (TEXTURE, "m_texture"), (BACKGROUND, "m_bg"))
    ),
)
