"""Recipes of published results: the default configuration, changed to match the original code exactly."""

from typing import Any

from ml_collections import ConfigDict

from cfmlc_jax import config as configs
from cfmlc_jax.errors import InputError

DATA_SETS = ("coco", "voc2007", "vg256")
# "asl", the name of its loss, is an alias of the baseline "whole".
METHODS = ("pat_t", "whole", "asl")


def mlc_pat(variant: str, *, synchronised_norms: bool = False) -> ConfigDict:
    """The configuration of MLC-PAT's recipe (its run.sh; arXiv:2404.06287) for a data set and a method, unlocked.

    The reference trains PAT-T with batches of 128 images on four GPUs. Each GPU has its own batch statistics,
    and the order of images is the same in all epochs. Its baseline, plain ASL training, runs on one GPU,
    with joint statistics and a new order in each epoch. Here both use batches of 128, for comparison.

    Args:
        variant: a data set, a method, or both, such as "voc2007,whole". Defaults: coco and pat_t.
        synchronised_norms: batch statistics are over all GPUs.

    Raises:
        InputError: an unknown variant.
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
            f"{', '.join(METHODS)}, or only one of them"
        )
    return (*data_sets, "coco")[0], (*methods, "pat_t")[0]


# The fields that each variant of long-tailed training changes.
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


# The variant that trains a head.
OF_HEAD = {"causal_norm": "deconfound", "dot_product": "plain", "lws": "lws"}


def long_tailed(variant: str, *, first_stage: str = "", stage_epochs: int = 5) -> ConfigDict:
    """The configuration of long-tailed training (Tang et al., NeurIPS 2020) for a variant, unlocked.

    Softmax classification by SGD with momentum and weight decay on all parameters. There is no early stopping
    and no weight averaging: raw and averaged weights are the same. The caller sets data, backbone, schedule
    and strengths. The second stage "lws" is complete: it trains the scales for a few epochs with balanced
    classes and a cosine schedule.

    Args:
        variant: a key of `LONG_TAILED`; empty: "deconfound".
        first_stage: workdir of the run of variant "plain" whose weights "lws" scales.
        stage_epochs: number of epochs of "lws".

    Raises:
        InputError: an unknown variant.
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
    """The configuration of ResNeXt-50 from random weights on ImageNet-LT or Places-LT, unlocked.

    Args:
        name: "imagenet" or "places".
        variant: as in `long_tailed`.

    Raises:
        InputError: an unknown variant.
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


# The fields of counterfactual generative networks that each look of the digits changes; the defaults are those of
# "double_colored".
LOOKS: dict[str, dict[str, dict[str, Any]]] = {
    "colored": {
        "generator": {"gain": 0.1},
        "loss": {"entropy": 0.1, "style": (0.05, 0.1, 0.01, 0.0)},
    },
    "double_colored": {},
    "wildlife": {
        "generator": {"init": "normal", "gain": 0.03},
        "critic": {"name": "conv", "ndf": 32},
        "loss": {"style": (0.01, 0.05, 0.0, 0.01)},
    },
}


def cgn_digits(look: str) -> ConfigDict:
    """The configuration of a generator of digits (Sauer & Geiger, ICLR 2021), unlocked; the caller sets the data.

    The style loss is that of the reference. Its features are the default's, random ones: the caller sets those
    of VGG-16, or no style loss.

    Args:
        look: a key of `LOOKS`; empty: "double_colored".

    Raises:
        InputError: an unknown look.
    """
    look = look or "double_colored"
    if look not in LOOKS:
        raise InputError(f"variant {look!r} is not one of {', '.join(LOOKS)}")
    config = configs.default("cgn")
    config.update(LOOKS[look])
    return config
