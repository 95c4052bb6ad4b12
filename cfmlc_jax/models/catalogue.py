"""The tables of backbones and heads by name, and `create`, which builds a classifier from them."""

import difflib
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from cfmlc_jax.causal.patches import POOLINGS
from cfmlc_jax.errors import InputError
from cfmlc_jax.models.backbones import cnn_mnist, convnext, cvt, resnet, resnet_cifar, swin, tresnet, vit
from cfmlc_jax.models.classifier import DEFAULT_PRECISION, Classifier
from cfmlc_jax.models.heads import linear, map_cells, mechanisms, ml_decoder, pooled, query2label
from cfmlc_jax.models.layers import normalise
from cfmlc_jax.models.layers.norms import BatchNorm
from cfmlc_jax.models.layers.remat import MODES, NONE
from cfmlc_jax.models.torch_names import BRANCHES, HeadNames, TorchNames


class Backbone(NamedTuple):
    """A backbone by name.

    create: (dtype, norm) -> the module; also (dtype, norm, remat), unless `remat` is False.
    stride: image sizes must be multiples of it.
    torch: names of its parameters in PyTorch checkpoints.
    frozen: parameters that Query2Label does not train, as in `Classifier.frozen`.
    frozen_norms: in Query2Label the running statistics of the norms are frozen too.
    batch_norms: it has batch norms.
    remat: it can compute its blocks again in the backward pass, by `layers.remat`.
    """

    create: Callable[..., Any]
    stride: int
    torch: TorchNames
    frozen: tuple[str, ...] = ()
    frozen_norms: bool = False
    batch_norms: bool = True
    remat: bool = True


class Head(NamedTuple):
    """A head by name.

    create: (num_classes, attention, dtype, …) -> the module; also `remat`, if that is True.
    torch: names of its parameters in PyTorch checkpoints; None for a new head, and for those that only
        checkpoints of another reference have (`torch_weights.long_tailed`, `torch_weights.cgn`).
    frozen: parameters that are not trained, as in `Classifier.frozen`.
    section: section of config.model with the fields of this head; empty if it has none.
    options: fields of that section that `create` takes.
    has_mean: the head has a mean feature, and so a counterfactual of its own.
    second_stage: training starts from the weights of another head (`classify.finetune`).
    remat: it has blocks to compute again in the backward pass; of one linear layer, only the input is stored anyway.
    """

    create: Callable[..., Any]
    torch: HeadNames | None
    frozen: tuple[str, ...] = ()
    section: str = ""
    options: tuple[str, ...] = ()
    has_mean: bool = False
    second_stage: bool = False
    remat: bool = False

    @property
    def sections(self) -> tuple[str, ...]:
        """The section followed by a dot, if there is one."""
        return (f"{self.section}.",) if self.section else ()


def _pooled(name: str, **fields: Any) -> Head:
    """A head for long-tailed data, by its name in `pooled.CLASSIFIERS`."""

    def create(num_classes, attention, *, dtype, **options):
        classifier = pooled.CLASSIFIERS[name]
        return pooled.PooledHead(num_classes, attention, classifier, tuple(options.items()), dtype)

    return Head(create, None, **fields)


def _cosine(name: str) -> Head:
    """A head with a cosine classifier, which has a mean feature."""
    return _pooled(name, section="cosine", options=("num_heads", "tau", "gamma"), has_mean=True)


def _ml_decoder(num_classes, attention, *, dtype, queries, remat=NONE):
    return ml_decoder.MLDecoder(num_classes, attention, queries=queries, dtype=dtype, remat=remat)


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
    "swin_b_224": Backbone(swin.SwinB224, 224, swin.TORCH, batch_norms=False),
    "swin_b_384": Backbone(swin.SwinB384, 384, swin.TORCH, batch_norms=False),
    "swin_l_224": Backbone(swin.SwinL224, 224, swin.TORCH, batch_norms=False),
    "swin_l_384": Backbone(swin.SwinL384, 384, swin.TORCH, batch_norms=False),
    "cvt_w24": Backbone(cvt.CvTW24, 16, cvt.TORCH),
    "cnn_mnist": Backbone(cnn_mnist.MnistCNN, 32, cnn_mnist.TORCH),
    **{
        name: Backbone(model.create, model.create.keywords["patch"], model.torch, batch_norms=False)
        for name, model in vit.MODELS.items()
    },
    **{
        name: Backbone(create, 32, convnext.TORCH, batch_norms=False)
        for name, create in convnext.MODELS.items()
    },
}
HEADS = {
    "linear": Head(linear.LinearHead, linear.TORCH),
    "query2label": Head(query2label.Query2Label, query2label.TORCH, remat=True),
    "ml_decoder": Head(
        _ml_decoder,
        ml_decoder.TORCH,
        ml_decoder.FROZEN,
        section="ml_decoder",
        options=("queries",),
        remat=True,
    ),
    "causal_norm": _cosine("causal_norm"),
    "cosine": _cosine("cosine"),
    "capsule": _cosine("capsule"),
    "dot_product": _pooled("dot_product", section="dot_product"),
    "mechanisms": Head(mechanisms.MechanismHead, None),
    "lws": _pooled("lws", frozen=pooled.FROZEN, second_stage=True),
}
# Prefix of a backbone's name that stands for the head "query2label".
QUERY2LABEL = "q2l_"
# Types of the computation. "auto": bfloat16 on GPUs and TPUs, which compute it several times as fast, else float32.
AUTO = "auto"
DTYPES = (AUTO, "float32", "bfloat16")
# What the backward pass can compute again.
REMAT = MODES


class Cosine(NamedTuple):
    """Fields of a cosine head (`pooled.CosineClassifier`); only "causal_norm" uses gamma."""

    num_heads: int = 2
    tau: float = 16.0
    gamma: float = 1 / 32


class MLDecoderFields(NamedTuple):
    """Fields of an ML-Decoder head: the number of its queries."""

    queries: int = 100


class Model(NamedTuple):
    """The fields of config.model that `create` reads, with their defaults.

    name: a backbone, or "q2l_" and a backbone.
    head: a key of `HEADS`; with the prefix "q2l_", "linear" stands for "query2label".
    frozen: further parameters that are not trained, as in `Classifier.frozen`.
    frozen_norms: training uses the running statistics of all norms and does not update them.
    norm_groups: number of groups of images with separate batch statistics, as in `BatchNorm.groups`.
    dtype: type of the computation, or "auto" (`compute_dtype`).
    precision: of float32 products, as in `Classifier.precision`.
    remat: what the backward pass computes again to save memory, one of `layers.remat.MODES`.
    """

    name: str
    head: str = "linear"
    cosine: Any = Cosine()
    ml_decoder: Any = MLDecoderFields()
    frozen: Sequence[str] = ()
    frozen_norms: bool = False
    norm_groups: int = 1
    dtype: Any = AUTO
    precision: str = DEFAULT_PRECISION
    remat: str = NONE


class Patches(NamedTuple):
    """The fields of config.patches that `create` reads, with their defaults.

    branches: the branches that score patches, a key of `torch_names.BRANCHES`.
    source: "map": patches are the cells of a map; otherwise they are views.
    map: name of the backbone's map whose cells are the patches.
    pooling: a key of `causal.patches.POOLINGS`.
    """

    branches: str = "cross"
    source: str = "host"
    map: str = "layer1"
    pooling: str = "pivot"


def names() -> list[str]:
    """All model names."""
    return [*BACKBONES, *(QUERY2LABEL + name for name in BACKBONES)]


def parts(name: str) -> tuple[Backbone, tuple[str, ...]]:
    """The backbone of a model name, and the names of the heads that it can have.

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


def in_full(name: str, head: str) -> tuple[str, str]:
    """A model's name and head made consistent: if either stands for Query2Label, both do in the result."""
    if name.startswith(QUERY2LABEL) and head == "linear":
        return name, "query2label"
    if head == "query2label" and name in BACKBONES:
        return QUERY2LABEL + name, head
    return name, head


def has_batch_statistics(model: Any) -> bool:
    """Whether the images of a training batch depend on each other, by the statistics of batch norms.

    Args:
        model: section `model` of a configuration, or a `Model`.

    Raises:
        InputError: an unknown name.
    """
    name, head = in_full(model.name, model.head)
    backbone, _ = parts(name)
    return backbone.batch_norms and not _freezes_norms(model, backbone, head)


def compute_dtype(dtype: Any, platform: str | None = None) -> jnp.dtype:
    """The type of a computation: float32 or bfloat16 for "auto", otherwise the type itself.

    Args:
        dtype: one of `DTYPES`, or any type.
        platform: of the devices, such as "gpu"; None: of JAX's default devices.
    """
    if isinstance(dtype, str) and dtype == AUTO:
        dtype = "float32" if (platform or jax.default_backend()) == "cpu" else "bfloat16"
    return jnp.dtype(dtype)


def _freezes_norms(model, backbone, head):
    return model.frozen_norms or (head == "query2label" and backbone.frozen_norms)


def create(
    model: Any, num_classes: int, image_size: int, patches: Any = None, micro_batches: int = 1
) -> Classifier:
    """A `Classifier` of k classes: `apply(variables, views[b, v, h, w, 3], train=…) -> Outputs`.

    Args:
        model: section `model` of a configuration, or a `Model`.
        num_classes: k.
        image_size: side of the views, pixels.
        patches: section `patches` of a configuration, or a `Patches`; None: only the whole view is scored.
        micro_batches: number of parts of a batch that training computes one after the other; they share the
            norm groups.

    Raises:
        InputError: an unknown name, head or branches, an image size that the backbone's stride does not
            divide, fewer than one group of norms, or a backbone without blocks to compute again.
    """
    name, head_name = in_full(model.name, model.head)
    backbone, allowed = parts(name)
    if head_name not in allowed:
        raise InputError(f"model {name!r} has no head {head_name!r}; choose one of {', '.join(allowed)}")
    _check_image_size(name, backbone.stride, image_size)
    if model.norm_groups < 1:
        raise InputError(f"norm_groups {model.norm_groups} must be at least 1: 1 is one group of all images")
    head, dtype = HEADS[head_name], compute_dtype(model.dtype)
    frozen_norms = _freezes_norms(model, backbone, head_name)
    groups = max(model.norm_groups // micro_batches, 1)
    norm = functools.partial(BatchNorm, dtype=dtype, frozen=frozen_norms, groups=groups)
    options = {option: getattr(getattr(model, head.section), option) for option in head.options}
    recomputed = {} if model.remat == NONE else {"remat": model.remat}
    if recomputed and not backbone.remat:
        raise InputError(f"model {name!r} has no remat {model.remat!r}; set it to {NONE!r}")
    branches, cells = _branches(patches, num_classes, dtype)
    return Classifier(
        backbone=backbone.create(dtype=dtype, norm=norm, **recomputed),
        head=head.create(num_classes, branches, dtype=dtype, **options, **(recomputed if head.remat else {})),
        cells=cells,
        frozen=(*head.frozen, *(backbone.frozen if head_name == "query2label" else ()), *model.frozen),
        precision=model.precision,
    )


def create_model(
    name: str,
    num_classes: int,
    *,
    attention: str = "none",
    image_size: int = 448,
    head: str = "linear",
    dtype: Any = jnp.float32,
    remat: str = NONE,
) -> Classifier:
    """A classifier of k classes: `apply(variables, views[b, v, h, w, 3], train=False)` -> outputs.

    Pixels are in [0, 1]; the first view of an image is the whole image. Outputs have `whole` [b, v, k],
    `attention` and `score`, each [b, v, k] or None, and `features`, the backbone's maps by name. The classifier is
    a Flax module: `init(jax.random.key(0), views, train=False)` returns its variables, and so does `cfmlc_jax.from_torch`.

    Args:
        name: a backbone, for example "resnet101", or "q2l_" and a backbone for Query2Label's head.
        num_classes: k.
        attention: how patches are weighted: "none", "self" or "cross" (`torch_names.BRANCHES`).
        image_size: side of the views, pixels.
        head: "ml_decoder", "causal_norm", …; the prefix "q2l_" of the name stands for "query2label".
        dtype: type of the computation; parameters are float32.
        remat: what the backward pass computes again to save memory: "none", "blocks" or "everything".

    Raises:
        InputError: an unknown name, head, attention or remat, or an image size that does not suit the backbone.
    """
    if remat not in REMAT:
        raise InputError(f"remat {remat!r} is not one of {', '.join(REMAT)}")
    patches = None if attention == "none" else Patches(attention)
    return create(Model(name, head, dtype=dtype, remat=remat), num_classes, image_size, patches)


def normalised(classifier: Classifier, name: str) -> Classifier:
    """The classifier with pixels standardised by what `normalise.parse` reads in a text; "": pixels in [0, 1].

    Raises:
        InputError: the text names no normalisation.
    """
    normalisation = normalise.parse(name)
    return classifier if normalisation is None else classifier.clone(normalisation=normalisation)


def _branches(patches, num_classes, dtype):
    """Branches of the head, and the module that scores the cells of a map if those are the patches, else None."""
    if patches is None:
        return "none", None
    if patches.branches not in BRANCHES:
        raise InputError(f"branches {patches.branches!r} is not one of {', '.join(BRANCHES)}")
    if patches.source != "map":
        return patches.branches, None
    if patches.branches == "none":
        raise InputError("cells of a map need branches 'self' or 'cross', not 'none'")
    background = POOLINGS[patches.pooling].background
    return "none", map_cells.MapCells(num_classes, patches.branches, patches.map, background, dtype=dtype)


def _check_image_size(name, stride, image_size):
    if image_size < stride or image_size % stride:
        below = max(stride, image_size // stride * stride)
        raise InputError(
            f"image_size {image_size} is not divisible by {stride} ({name}); try {below} or {below + stride}"
        )
