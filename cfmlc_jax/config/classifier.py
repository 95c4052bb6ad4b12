"""The fields of classifiers: task, method, patches, model, loss, effect."""

import re
from typing import Any

from ml_collections import ConfigDict, config_dict

from cfmlc_jax.causal.effects import NULL_KINDS
from cfmlc_jax.causal.patches import POOLINGS
from cfmlc_jax.config.part import PIXELS, Bounds, Part, Use, require_unique, uses_of
from cfmlc_jax.data.views.transforms import TRANSFORMS
from cfmlc_jax.errors import InputError
from cfmlc_jax.losses import LOSSES, TASKS
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.classifier import DEFAULT_PRECISION, PRECISIONS
from cfmlc_jax.models.torch_names import BRANCHES
from cfmlc_jax.optim.build import OPTIMIZERS

METHODS = ("pat_t", "pat_i", "whole", "invariant")
WITHOUT_PATCHES = ("whole", "invariant")
# Older configurations call the method "whole" so.
WHOLE_ALIAS = "asl"
PATCH_SOURCES = ("host", "device", "map")
EFFECTS = ("whole", "pivot", "owner", "feature")
# The head of method "invariant", for which "linear" stands there.
MECHANISM_HEAD = "mechanisms"
# A head with the whole-image branch only.
NO_BRANCHES = "none"


def _patches() -> ConfigDict:
    """Methods pat_t and pat_i: where patches come from, and how their evidence is pooled."""
    patches = ConfigDict()
    # host: the host cuts patches from the image, enlarges them to views.image_size and augments each one, as
    # in the reference. device: the device cuts them from the whole view, and resizes them to `size`. map:
    # patches are the cells of the backbone's feature map `map`, at almost no cost; for method pat_t.
    patches.source = "host"
    patches.grids = (2,)  # number of patches along one side; several numbers: several scales
    patches.overlap = 0.0  # fraction of a patch's side that neighbouring patches share
    # device: side of a patch that the model sees, pixels. At views.image_size / grid, patches are not
    # resized, and all of them together cost about as much as the whole view.
    patches.size = 224
    patches.map = "layer1"  # map: a feature map of the backbone, such as "layer1" of a ResNet
    # A name of `causal.patches.POOLINGS`. pivot: each class has its own softmax over patches, as in the
    # paper. exclusive: a softmax over classes divides each patch, so that a patch of the context cannot be
    # evidence for the target.
    patches.pooling = "pivot"
    # Of the patches in the combined prediction; that of the whole image has the rest. 0.5: equal weights, as in the paper.
    patches.weight = 0.5
    # pat_t: the whole-image branch learns the probabilities of the patches (binary cross-entropy), not the labels.
    patches.distil = False
    # pat_t: branches of the head in addition to the whole-image branch. self: one, used as both attention and
    # score of patches. cross: one for attention, one for scores. Other methods have no further branches.
    patches.branches = "cross"
    return patches


def _model() -> ConfigDict:
    model = ConfigDict()
    # A backbone of `models.catalogue.BACKBONES`. The prefix "q2l_" is a short form of model.head query2label.
    model.name = "resnet101"
    model.head = "linear"  # a name of `models.catalogue.HEADS`
    # For the heads causal_norm, cosine and capsule, which keep a mean feature (models/heads/pooled.py).
    model.cosine = cosine = ConfigDict()
    cosine.num_heads = 2  # equal slices of the features, each normalised separately
    cosine.tau = 16.0  # factor of the mean of the cosines
    cosine.gamma = 1 / 32  # causal_norm: added to the norms of the weights
    # Factor of the previous mean feature at each training step. Or "schedule": it follows the learning rate
    # of SGD, 1 − 0.1·min(50·rate, 1), as in the reference for all data but CIFAR.
    cosine.momentum = config_dict.FieldReference(0.9, field_type=object)
    model.dot_product = ConfigDict()
    # tau of tau-norm: evaluation uses the weights w / ‖w‖^tau. 0: the weights as trained.
    model.dot_product.tau_norm = 0.0
    model.ml_decoder = ConfigDict({"queries": 100})  # capped at the number of classes
    # Regular expressions of parameters that are not trained, such as "backbone/.*". The running statistics of
    # norm layers are still updated.
    model.frozen = ()
    # Training uses the running statistics of all norms of the backbone and does not update them; their scales and
    # biases are trained.
    model.frozen_norms = False
    # Number of groups of images in a batch that have separate batch statistics. 1: statistics of the whole
    # batch. The reference has one group per GPU.
    model.norm_groups = 1
    # What the backward pass computes again, so that it need not be stored; what is learned is the same. none: nothing.
    # blocks: each residual or transformer block, from its stored input. everything: each stage of the backbone, from
    # its stored input, and in it each block.
    model.remat = "none"
    # Of the computation; parameters and loss are always float32. auto: bfloat16 on GPUs and TPUs, float32 on CPUs.
    model.dtype = catalogue.AUTO
    # Of products and convolutions of float32. default: GPUs compute them in TF32, TPUs in one pass of bfloat16. high:
    # several passes. highest: float32.
    model.precision = DEFAULT_PRECISION
    return model


def _loss() -> ConfigDict:
    loss = ConfigDict()
    # A name of `losses.LOSSES`, for the task: "asymmetric" is for multi_label, the others for single_label.
    loss.name = "asymmetric"
    loss.gamma_neg = 4.0
    loss.gamma_pos = 0.0
    loss.clip = 0.05
    loss.focal_gamma = 2.0  # for "focal"
    return loss


def _effect() -> ConfigDict:
    effect = ConfigDict()
    # Total direct effects that the full evaluation computes. whole: subtracts the logits of the null image.
    # pivot: those without the pivot patch. owner: those without the pixels that the class owns, over which their
    # surroundings are continued. feature: the part along the mean feature, for heads that keep one.
    effect.kinds = ("whole", "pivot")
    # owner: checkpoint of a classifier whose patches are cells of a map, which says who owns a pixel; empty: the
    # patches of the classifier itself. Cells that were trained with data.decorrelate know best.
    effect.owners = ""
    # owner: number of classes in each image that lose their pixels, those with the most evidence; a forward pass each.
    # The effect of all others is 0.
    effect.classes = 10
    effect.null = "mean"  # what replaces removed pixels: zeros, mean or blur
    effect.alphas = (0.5, 1.0)  # strengths; a report can use others later, from the saved scores
    return effect


SECTIONS: dict[str, Any] = {
    # multi_label: an image has any number of labels. single_label: exactly one; results are accuracies.
    "task": lambda: "multi_label",
    # pat_t: trains and predicts with patches. pat_i: trains on whole images, predicts with patches. whole: the
    # baseline, whole images only ("asl" is an alias). invariant: whole images, with a head for each mechanism that
    # is trained on the generated records of data.counterfactuals.
    "method": lambda: "pat_t",
    "patches": _patches,
    "model": _model,
    "loss": _loss,
    "effect": _effect,
}

BOUNDS = {
    "patches.grids": Bounds(2, 64, ": each of the grid² patches is a forward pass"),
    "patches.overlap": Bounds(0, 0.95),
    "patches.size": PIXELS,
    "patches.weight": Bounds(0, 1),
    "model.cosine.num_heads": Bounds(1),
    "model.cosine.tau": Bounds(open=True),
    "model.cosine.momentum": Bounds(0, 1),
    "model.ml_decoder.queries": Bounds(1),
    "model.norm_groups": Bounds(1),
    "effect.classes": Bounds(1),
    "loss.clip": Bounds(0, 1),
}


def _choices():
    return {
        "task": TASKS,
        "method": METHODS,
        "patches.source": PATCH_SOURCES,
        "patches.pooling": POOLINGS,
        "patches.branches": [name for name in BRANCHES if name != NO_BRANCHES],
        "model.head": catalogue.HEADS,
        "model.cosine.momentum": ("schedule",),
        "model.dtype": catalogue.DTYPES,
        "model.precision": PRECISIONS,
        "model.remat": catalogue.REMAT,
        "loss.name": LOSSES,
        "effect.kinds": EFFECTS,
        "effect.null": NULL_KINDS,
    }


def branches(config: Any) -> str:
    """The branches of a configuration's head, a key of `torch_names.BRANCHES` (`branches_of`)."""
    return branches_of(config.method, config.patches.branches)


def branches_of(method: str, chosen: str) -> str:
    """The branches of the head for a method: `patches.branches` for pat_t, "none" for the others."""
    return chosen if method == "pat_t" else NO_BRANCHES


def patch_map(config: Any) -> str:
    """The backbone's feature map whose cells are the patches; empty if patches are not cells of a map."""
    return config.patches.map if config.patches.source == "map" else ""


def _expand(config: ConfigDict) -> None:
    if config.method == WHOLE_ALIAS:
        config.method = "whole"
    if config.method == "invariant" and config.model.head == "linear":
        config.model.head = MECHANISM_HEAD
    config.model.name, config.model.head = catalogue.in_full(config.model.name, config.model.head)


def _check(config: ConfigDict) -> None:
    # Names of results contain alpha in this format.
    require_unique("effect.alphas", [f"{alpha:g}" for alpha in config.effect.alphas])
    _check_task(config)
    _check_method(config)
    _check_patches(config)
    _check_norm_groups(config)
    _check_micro_batches(config)
    _check_head(config)
    _check_frozen(config.model.frozen)


def _check_task(config):
    task = LOSSES[config.loss.name].task
    if config.task != task:
        others = [name for name, loss in LOSSES.items() if loss.task == config.task]
        raise InputError(
            f"config.loss.name {config.loss.name!r} is for task {task!r}: set config.task to it, not "
            f"{config.task!r}, or set the loss to {' or '.join(others)}"
        )
    if config.task != "single_label" and config.data.balanced:
        raise InputError(
            f"config.data.balanced is for task 'single_label', not {config.task!r}; set it to False"
        )
    if config.task != "multi_label" and config.data.hide_labels:
        raise InputError(
            f"config.data.hide_labels is for task 'multi_label', not {config.task!r}, whose softmax needs all labels; set it to 0"
        )
    decorrelate = config.data.decorrelate
    if config.task != "multi_label" and min(decorrelate.effective_share, decorrelate.val_share) < 1:
        raise InputError(
            f"config.data.decorrelate is for task 'multi_label', not {config.task!r}, whose labels exclude each other; set "
            "effective_share and val_share to 1"
        )
    if config.task != "multi_label" and config.evaluate.thresholds != "fixed":
        raise InputError(
            f"config.evaluate.thresholds {config.evaluate.thresholds!r} is for task 'multi_label', not {config.task!r}, "
            "whose most probable class is the prediction; set it to 'fixed'"
        )
    transform = config.views.transform
    needs_whole = {
        ("task", config.task): config.task == "single_label",
        ("views.transform", transform): not TRANSFORMS[transform].cuts_patches,
    }
    for (name, value), needed in needs_whole.items():
        if needed and config.method not in WITHOUT_PATCHES:
            raise InputError(
                f"config.{name} {value!r} is for whole images: set method to 'whole', not {config.method!r}"
            )


def _check_method(config):
    if config.method in WITHOUT_PATCHES and "pivot" in config.effect.kinds:
        raise InputError(
            f"method {config.method!r} has no patches: remove 'pivot' from effect.kinds, or use method 'pat_i'"
        )
    if config.method in WITHOUT_PATCHES and "owner" in config.effect.kinds and not config.effect.owners:
        raise InputError(
            f"method {config.method!r} has no patches that say who owns a pixel: remove 'owner' from effect.kinds, or "
            "give a checkpoint with cells of a map as config.effect.owners"
        )
    if config.method == "invariant":
        _check_invariant(config)
    elif config.model.head == MECHANISM_HEAD:
        raise InputError(
            f"config.model.head {MECHANISM_HEAD!r} is for method 'invariant', not {config.method!r}; set the head to "
            "'linear', or the method to 'invariant'"
        )


def _check_invariant(config):
    if config.task != "single_label":
        raise InputError(
            f"method 'invariant' is for task 'single_label', not {config.task!r}; set the task to it"
        )
    if config.model.head != MECHANISM_HEAD:
        raise InputError(
            f"method 'invariant' has a head for each mechanism: set config.model.head to {MECHANISM_HEAD!r}, not "
            f"{config.model.head!r}"
        )
    if LOSSES[config.loss.name].weighs_classes:
        raise InputError(
            f"config.loss.name {config.loss.name!r} weighs an image by the others of its batch, which are of two kinds "
            "for method 'invariant'; set the loss to 'cross_entropy' or 'focal'"
        )


def _check_patches(config):
    patches, image_size = config.patches, config.views.image_size
    if not patches.grids:
        raise InputError("config.patches.grids is empty; give at least one number, such as (2,)")
    for grid in patches.grids:
        if patches.overlap == 0 and len(patches.grids) == 1 and image_size % grid:
            below = image_size // grid * grid
            tries = " or ".join(str(size) for size in (below, below + grid) if size)
            raise InputError(
                f"views.image_size {image_size} is not divisible by patches.grids {grid}; try {tries}"
            )
    if max(patches.grids) > image_size:
        raise InputError(
            f"patches.grids {max(patches.grids)} cuts views of {image_size} pixels into patches without pixels; "
            "make views.image_size larger"
        )
    if patches.source == "map":
        _check_map(config)


def _check_map(config):
    if config.method != "pat_t":
        raise InputError(
            f"config.patches.source 'map' is for method 'pat_t'; set it to 'host' for {config.method!r}"
        )
    if not config.patches.map:
        raise InputError("config.patches.map is empty; name a map of the backbone, such as 'layer1'")
    if "pivot" in config.effect.kinds:
        raise InputError(
            "config.patches.source 'map': cells of a map cannot be removed from the image; remove 'pivot' from "
            "effect.kinds"
        )


def _check_norm_groups(config):
    batch_size, groups = config.train.batch_size, config.model.norm_groups
    if batch_size % groups:
        below = batch_size // groups * groups
        tries = " or ".join(str(size) for size in (below, below + groups) if size)
        raise InputError(
            f"config.train.batch_size {batch_size} is not divisible by config.model.norm_groups {groups}; try {tries}"
        )


def micro_batches(config: Any, devices: int = 1) -> list[int]:
    """The values of `train.micro_batches` that a configuration can have on a number of devices.

    Each micro-batch has as many images on every device, and whole norm groups, if there are batch statistics.
    """
    batch_size, groups = config.train.batch_size, config.model.norm_groups
    most = groups if catalogue.has_batch_statistics(config.model) else batch_size
    return [n for n in range(1, most + 1) if most % n == 0 and batch_size % (n * devices) == 0]


def _check_micro_batches(config):
    number, groups = config.train.micro_batches, config.model.norm_groups
    if number == 1:
        return
    possible = micro_batches(config)
    if number in possible:
        return
    if not catalogue.has_batch_statistics(config.model):
        raise InputError(
            f"config.train.micro_batches {number} does not divide train.batch_size {config.train.batch_size}; "
            f"{tried(possible)}"
        )
    if groups == 1:
        raise InputError(
            f"config.train.micro_batches {number}: batch statistics are of all {config.train.batch_size} images "
            "together (model.norm_groups 1), which no micro-batch sees; set model.remat to 'blocks' or 'everything', "
            "which save memory at the same numbers, or model.norm_groups to a multiple of train.micro_batches, which "
            "changes the statistics"
        )
    raise InputError(
        f"config.train.micro_batches {number} does not divide model.norm_groups {groups}, the groups of images with "
        f"batch statistics of their own; {tried(possible)}"
    )


def tried(numbers: list[int]) -> str:
    """The end of an error message: which numbers to try."""
    return (
        f"try {', '.join(str(number) for number in numbers[:-1])}{' or ' if numbers[1:] else ''}{numbers[-1]}"
    )


def _check_head(config):
    head, model = config.model.head, config.model
    if "feature" in config.effect.kinds and not catalogue.HEADS[head].has_mean:
        with_mean = [name for name, each in catalogue.HEADS.items() if each.has_mean]
        raise InputError(
            f"effect.kinds has 'feature', but model.head {head!r} has no mean feature; remove it, or set the head "
            f"to one of {', '.join(with_mean)}"
        )
    if model.cosine.momentum == "schedule" and not OPTIMIZERS[config.optim.name].by_epoch:
        raise InputError(
            "config.model.cosine.momentum 'schedule' follows the learning rate of optim.name 'sgd'; use that, or a number, such as 0.9"
        )
    if model.dot_product.tau_norm and head != "dot_product":
        raise InputError(
            f"config.model.dot_product.tau_norm is for model.head 'dot_product', not {head!r}; set it to 0"
        )


def _check_frozen(patterns):
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, OverflowError, RecursionError) as error:
            raise InputError(
                f"config.model.frozen has {pattern!r}, which is not a regular expression ({error}); correct it"
            ) from error


def _check_training(config: ConfigDict) -> None:
    counterfactuals = config.data.counterfactuals
    if config.method == "invariant" and not (counterfactuals.path and counterfactuals.share):
        raise InputError(
            "method 'invariant' trains its heads on generated records: set config.data.counterfactuals.path to their "
            "folder, and share above 0"
        )
    if config.train.removal.rate and config.patches.source != "map":
        raise InputError(
            f"config.train.removal.rate is {config.train.removal.rate:g}, but only cells of a map say which region is a class's "
            f"own, not patches.source {config.patches.source!r}; set method to 'pat_t' and patches.source to 'map', or rate to 0"
        )
    if config.train.removal.rate and config.train.removal.exchange and config.train.micro_batches > 1:
        raise InputError(
            f"config.train.removal.exchange takes a class from another image of the batch, which train.micro_batches "
            f"{config.train.micro_batches} divide; set exchange to 0, or micro_batches to 1"
        )
    if config.patches.pooling == "exclusive" and branches(config) == "cross":
        raise InputError(
            "config.patches.pooling 'exclusive' uses scores only, so the attention branch of "
            "patches.branches 'cross' would never be trained; set patches.branches to 'self'"
        )
    if config.loss.name == "asymmetric" and config.loss.clip == 1:
        raise InputError(
            "config.loss.clip is 1: absent classes would have no loss; use a smaller value, such as 0.05"
        )
    if catalogue.HEADS[config.model.head].has_mean and config.model.cosine.momentum == 1:
        raise InputError(
            "config.model.cosine.momentum is 1: the mean feature would stay at 0; use a smaller value, such as 0.9"
        )


def _uses(config: ConfigDict) -> list[Use]:
    head, patches = config.model.head, config.patches
    with_patches = config.method not in WITHOUT_PATCHES
    views_as_patches = with_patches and patches.source != "map"
    return [
        Use(("patches.grids", "patches.overlap"), views_as_patches or config.train.mask_rate > 0),
        Use(("patches.source", "patches.pooling", "patches.weight"), with_patches),
        Use(("patches.size",), views_as_patches and patches.source == "device"),
        Use(("patches.map",), patches.source == "map"),
        Use(("patches.branches", "patches.distil"), config.method == "pat_t"),
        *uses_of("model", {name: each.sections for name, each in catalogue.HEADS.items()}, head),
        *uses_of("loss", {name: tuple(each.options) for name, each in LOSSES.items()}, config.loss.name),
        Use(("effect.null",), bool(set(config.effect.kinds) - {"feature", "owner"})),
        Use(("effect.owners", "effect.classes"), "owner" in config.effect.kinds),
        Use(("effect.alphas",), bool(config.effect.kinds)),
    ]


PART = Part(
    sections=SECTIONS,
    bounds=BOUNDS,
    choices=_choices,
    paths=("effect.owners",),
    neutral=("effect.", "model.dot_product.tau_norm", "model.remat"),
    unique=("patches.grids", "model.frozen", "effect.kinds"),
    expand=_expand,
    check=_check,
    check_training=_check_training,
    uses=_uses,
)
