"""Names to models: one visible table."""

import difflib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from cfmlc_jax.errors import InputError
from cfmlc_jax.models import heads, resnet
from cfmlc_jax.models.classifier import Classifier


class Backbone(NamedTuple):
    """A backbone by name: what builds it, and the stride that image sizes must be multiples of."""

    create: Callable[..., Any]
    stride: int


BACKBONES = {
    "resnet18": Backbone(resnet.ResNet18, 32),
    "resnet34": Backbone(resnet.ResNet34, 32),
    "resnet50": Backbone(resnet.ResNet50, 32),
    "resnet101": Backbone(resnet.ResNet101, 32),
    "resnet_small": Backbone(resnet.ResNetSmall, 16),
}


def create(
    name: str, num_classes: int, *, attention: str, image_size: int, dtype: Any = jnp.float32
) -> Classifier:
    """A `Classifier` of k classes: `apply(variables, views[b, v, h, w, 3], train=…) -> Outputs`.

    Raises:
        InputError: an unknown name or attention, or an image size that the backbone cannot halve.
    """
    if name not in BACKBONES:
        near = difflib.get_close_matches(name, BACKBONES, 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"model {name!r} is not one of {', '.join(BACKBONES)}{hint}")
    if attention not in heads.ATTENTIONS:
        raise InputError(f"attention {attention!r} is not one of {', '.join(heads.ATTENTIONS)}")
    backbone, stride = BACKBONES[name]
    if image_size < stride or image_size % stride:
        below = max(stride, image_size // stride * stride)
        raise InputError(
            f"image_size {image_size} is not divisible by {stride} ({name}); try {below} or {below + stride}"
        )
    return Classifier(backbone=backbone(dtype=dtype), head=heads.LinearHead(num_classes, attention))
