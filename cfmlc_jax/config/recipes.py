"""Recipes of published results, to the letter: the schema's defaults with the original code's quirks."""

from typing import Any

from ml_collections import ConfigDict

from cfmlc_jax import config as configs
from cfmlc_jax.errors import InputError

DATA_SETS = ("coco", "voc2007", "vg256")
# The baseline is called by its loss, "asl", too.
METHODS = ("pat_t", "whole", "asl")


def mlc_pat(variant: str, *, synchronised_norms: bool = False) -> ConfigDict:
    """MLC-PAT's recipe (its run.sh; arXiv:2404.06287), unlocked, for a data set and a method.

    Its PAT-T trains 128 images at a time on four GPUs. Each has batch statistics of its own, and
    all epochs have one order. Its baseline, plain ASL training, is a script for one GPU, where
    neither is so; for comparison the batch is the same here.

    Args:
        variant: a data set, a method, or both, as "voc2007,whole"; what is not said is coco, pat_t.
        synchronised_norms: the model's statistics are those of all GPUs.

    Raises:
        InputError: another variant.
    """
    data_set, method = _parse(variant)
    config = configs.default()
    config.data.source = data_set
    if method in ("whole", "asl"):
        config.method = "whole"
        config.effect.kinds = ("whole",)
    else:
        config.data.reshuffle = False
        config.model.norm_groups = 1 if synchronised_norms else 4
    return config


def _parse(variant):
    words = variant.split(",") if variant else []
    data_sets = [word for word in words if word in DATA_SETS]
    methods = [word for word in words if word in METHODS]
    if len(data_sets) + len(methods) != len(words) or len(data_sets) > 1 or len(methods) > 1:
        raise InputError(
            f"variant {variant!r} is not of the form DATA,METHOD: one of {', '.join(DATA_SETS)} and one of "
            f"{', '.join(METHODS)}, or one of them alone"
        )
    return (*data_sets, "coco")[0], (*methods, "pat_t")[0]


# Variants of long-tailed training: what of the configuration they change.
LONG_TAILED: dict[str, dict[str, dict[str, Any]]] = {
    "deconfound": {"model": {"head": "causal_norm"}, "effect": {"kinds": ("feature",)}},
    "plain": {"model": {"head": "dot_product"}},
    "cosine": {"model": {"head": "cosine"}, "effect": {"kinds": ("feature",)}},
    "capsule": {"model": {"head": "capsule"}, "effect": {"kinds": ("feature",)}},
    "focal": {"model": {"head": "dot_product"}, "loss": {"name": "focal"}},
    "weighted": {"model": {"head": "dot_product"}, "loss": {"name": "weighted_cross_entropy"}},
    "tau": {"model": {"head": "dot_product", "dot_product": {"tau_norm": 1.0}}},
    "lws": {"model": {"head": "lws"}},
}


# The variant of a head.
OF_HEAD = {"causal_norm": "deconfound", "dot_product": "plain", "lws": "lws"}


def long_tailed(variant: str, *, first_stage: str = "", stage_epochs: int = 5) -> ConfigDict:
    """Training by a softmax under SGD (Tang et al., NeurIPS 2020), unlocked, with a classifier of `LONG_TAILED`.

    SGD with momentum decays everything; there is no moving average of the weights (both that are
    reported are the same), no early stop. Data, backbone, schedule and strengths are for the caller to
    set; but "lws" trains its scales for a few epochs of balanced classes down a cosine.

    Args:
        variant: a key of `LONG_TAILED`; empty: "deconfound".
        first_stage: run of the variant "plain" whose weights "lws" scales.
        stage_epochs: epochs of that second stage.

    Raises:
        InputError: another variant.
    """
    variant = variant or "deconfound"
    if variant not in LONG_TAILED:
        raise InputError(f"variant {variant!r} is not one of {', '.join(LONG_TAILED)}")
    config = configs.default()
    config.task = "single_label"
    config.method = "whole"
    config.loss.name = "cross_entropy"
    config.optim.name = "sgd"
    config.optim.learning_rate = 0.2
    config.optim.weight_decay = 5e-4
    config.optim.ema_decay = 0.0
    config.train.early_stop = False
    config.effect.kinds = ()
    config.update(LONG_TAILED[variant])
    if variant == "lws":
        config.init_from = first_stage
        config.data.balanced = True
        config.optim.sgd.schedule = "cosine"
        config.optim.weight_decay = 1e-4
        config.train.epochs = stage_epochs
    return config


def long_tailed_photos(name: str, variant: str) -> ConfigDict:
    """ResNeXt-50 from random weights on "imagenet" or "places", their list files' splits, unlocked.

    Args:
        name: of the data set, without "_lt".
        variant: as in `long_tailed`.

    Raises:
        InputError: another variant.
    """
    config = long_tailed(variant, first_stage=f"runs/longtail_{name}_plain")
    config.data.source = f"{name}_lt"
    config.data.test_splits = ("test",)
    config.views.image_size = 224
    config.views.transform = "area_crop"
    config.model.name = "resnext50_32x4d"
    config.data.normalise = "imagenet"
    config.model.cosine.momentum = "schedule"
    config.optim.sgd.schedule = "cosine"
    config.train.batch_size = 512
    if variant != "lws":
        config.train.epochs = 90
    config.effect.alphas = (3.0,)
    return config
