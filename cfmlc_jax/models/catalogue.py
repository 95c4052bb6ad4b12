"""Names to models: one visible table."""

import difflib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from cfmlc_jax.errors import InputError
from cfmlc_jax.models.backbones import cvt, resnet, resnet_cifar, swin, tresnet
from cfmlc_jax.models.classifier import Classifier
from cfmlc_jax.models.heads import linear, map_cells, ml_decoder, pooled, query2label
from cfmlc_jax.models.layers.normalise import NORMALISATIONS
from cfmlc_jax.models.layers.norms import BatchNorm
from cfmlc_jax.models.torch_names import BRANCHES, HeadNames, TorchNames


class Backbone(NamedTuple):
    """A backbone by name.

    create: (dtype, norm) -> the module.
    stride: image sizes must be multiples of it.
    torch: its names in PyTorch's checkpoints.
    frozen: parameters that Query2Label does not train, as in `Classifier.frozen`.
    frozen_norms: in Query2Label the norms keep their running statistics, too.
    """

    create: Callable[..., Any]
    stride: int
    torch: TorchNames
    frozen: tuple[str, ...] = ()
    frozen_norms: bool = False


class Head(NamedTuple):
    """A head by name.

    create: (num_classes, attention, dtype, …) -> the module.
    torch: its names in PyTorch's checkpoints; None where only the long-tailed reference's know it
        (`torch_weights.long_tailed`).
    frozen: parameters that are not trained, as in `Classifier.frozen`.
    options: fields of the module that a configuration sets.
    has_mean: it has a mean feature, and so a counterfactual of its own.
    second_stage: it goes on from the weights of another head (`classify.finetune`).
    """

    create: Callable[..., Any]
    torch: HeadNames | None
    frozen: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    has_mean: bool = False
    second_stage: bool = False


def _pooled(name: str, **fields: Any) -> Head:
    """The head of a classifier of long tails."""
    create = functools.partial(pooled.PooledHead, classifier=pooled.CLASSIFIERS[name])
    return Head(create, None, **fields)


def _cosine(name: str) -> Head:
    """The head of a cosine classifier, which has a mean feature."""
    return _pooled(name, options=("num_heads", "tau", "gamma"), has_mean=True)


BACKBONES = {
    "resnet18": Backbone(resnet.ResNet18, 32, resnet.TORCH, resnet.FROZEN, frozen_norms=True),
    "resnet34": Backbone(resnet.ResNet34, 32, resnet.TORCH, resnet.FROZEN, frozen_norms=True),
    "resnet50": Backbone(resnet.ResNet50, 32, resnet.TORCH, resnet.FROZEN, frozen_norms=True),
    "resnet101": Backbone(resnet.ResNet101, 32, resnet.TORCH, resnet.FROZEN, frozen_norms=True),
    "resnet10": Backbone(resnet.ResNet10, 32, resnet.TORCH, resnet.FROZEN, frozen_norms=True),
    "resnet152": Backbone(resnet.ResNet152, 32, resnet.TORCH, resnet.FROZEN, frozen_norms=True),
    "resnext50_32x4d": Backbone(resnet.ResNeXt50, 32, resnet.TORCH, resnet.FROZEN, frozen_norms=True),
    "resnext101_32x4d": Backbone(resnet.ResNeXt101, 32, resnet.TORCH, resnet.FROZEN, frozen_norms=True),
    "resnext152_32x4d": Backbone(resnet.ResNeXt152, 32, resnet.TORCH, resnet.FROZEN, frozen_norms=True),
    "resnet32_cifar": Backbone(resnet_cifar.ResNet32, 4, resnet_cifar.TORCH),
    "resnet_small": Backbone(resnet.ResNetSmall, 16, resnet.TORCH, resnet.FROZEN, frozen_norms=True),
    "tresnet_l": Backbone(tresnet.TResNetL, 32, tresnet.TORCH, tresnet.FROZEN),
    "tresnet_l_v2": Backbone(tresnet.TResNetLv2, 32, tresnet.TORCH, tresnet.FROZEN),
    "swin_b_224": Backbone(swin.SwinB224, 224, swin.TORCH),
    "swin_b_384": Backbone(swin.SwinB384, 384, swin.TORCH),
    "swin_l_224": Backbone(swin.SwinL224, 224, swin.TORCH),
    "swin_l_384": Backbone(swin.SwinL384, 384, swin.TORCH),
    "cvt_w24": Backbone(cvt.CvTW24, 16, cvt.TORCH),
}
HEADS = {
    "linear": Head(linear.LinearHead, linear.TORCH),
    "query2label": Head(query2label.Query2Label, query2label.TORCH),
    "ml_decoder": Head(ml_decoder.MLDecoder, ml_decoder.TORCH, ml_decoder.FROZEN),
    "causal_norm": _cosine("causal_norm"),
    "cosine": _cosine("cosine"),
    "capsule": _cosine("capsule"),
    "dot_product": _pooled("dot_product"),
    "lws": _pooled("lws", frozen=pooled.FROZEN, second_stage=True),
}
# Before a backbone's name: with the head "query2label".
QUERY2LABEL = "q2l_"


def names() -> list[str]:
    """All model names."""
    return [*BACKBONES, *(QUERY2LABEL + name for name in BACKBONES)]


def parts(name: str) -> tuple[Backbone, tuple[str, ...]]:
    """The backbone of a model name, and the heads it can have.

    Raises:
        InputError: an unknown name.
    """
    if name not in names():
        near = difflib.get_close_matches(name, names(), 1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise InputError(f"model {name!r} is not one of {', '.join(names())}{hint}")
    backbone = BACKBONES[name.removeprefix(QUERY2LABEL)]
    if name.startswith(QUERY2LABEL):
        return backbone, ("query2label",)
    return backbone, tuple(head for head in HEADS if head != "query2label")


def create(
    name: str,
    num_classes: int,
    *,
    attention: str,
    image_size: int,
    head: str = "",
    groups: int = 100,
    num_heads: int = 2,
    tau: float = 16.0,
    gamma: float = 1 / 32,
    cells: str = "",
    background: bool = False,
    statistics: str = "",
    frozen: Sequence[str] = (),
    norm_groups: int = 1,
    dtype: Any = jnp.float32,
) -> Classifier:
    """A `Classifier` of k classes: `apply(variables, views[b, v, h, w, 3], train=…) -> Outputs`.

    Args:
        name: a backbone, or "q2l_" and a backbone.
        num_classes: k.
        attention: a key of `torch_names.BRANCHES`, of the branches of what judges patches.
        image_size: side of the views, pixels.
        head: a key of `HEADS` that the name allows; empty for its first.
        groups: queries of an ML-Decoder head.
        num_heads: of a cosine head, see `pooled.CosineClassifier`.
        tau: of a cosine head.
        gamma: of the head "causal_norm".
        cells: the backbone's map whose cells are the patches; empty: patches are views.
        background: of cells, as in `map_cells.MapCells`.
        statistics: a key of `normalise.NORMALISATIONS`, by which pixels are standardised; empty: they are not.
        frozen: further parameters that are not trained, as in `Classifier.frozen`.
        norm_groups: of images with batch statistics of their own, as in `BatchNorm.groups`.
        dtype: of the computation.

    Raises:
        InputError: an unknown name, head or attention, an image size that the backbone cannot
            halve, or fewer than one group.
    """
    backbone, allowed = parts(name)
    head = head or allowed[0]
    if head not in allowed:
        raise InputError(f"head {head!r} does not go with model {name!r}; it takes {', '.join(allowed)}")
    if attention not in BRANCHES:
        raise InputError(f"attention {attention!r} is not one of {', '.join(BRANCHES)}")
    if cells and attention == "none":
        raise InputError(f"cells {cells!r} need attention 'self' or 'cross', not 'none'")
    stride = backbone.stride
    if image_size < stride or image_size % stride:
        below = max(stride, image_size // stride * stride)
        raise InputError(
            f"image_size {image_size} is not divisible by {stride} ({name}); try {below} or {below + stride}"
        )
    if norm_groups < 1:
        raise InputError(f"norm_groups {norm_groups} must be at least 1: 1 is one group of all images")
    of_query2label = head == "query2label"
    norm = functools.partial(
        BatchNorm, dtype=dtype, frozen=of_query2label and backbone.frozen_norms, groups=norm_groups
    )
    fields: dict[str, Any] = {"queries": groups} if head == "ml_decoder" else {}
    given = {"num_heads": num_heads, "tau": tau, "gamma": gamma}
    if HEADS[head].options:
        fields["options"] = tuple((option, given[option]) for option in HEADS[head].options)
    return Classifier(
        backbone=backbone.create(dtype=dtype, norm=norm),
        head=HEADS[head].create(num_classes, "none" if cells else attention, dtype=dtype, **fields),
        cells=map_cells.MapCells(num_classes, attention, cells, background, dtype=dtype) if cells else None,
        frozen=(*HEADS[head].frozen, *(backbone.frozen if of_query2label else ()), *frozen),
        normalisation=NORMALISATIONS[statistics] if statistics else None,
    )
