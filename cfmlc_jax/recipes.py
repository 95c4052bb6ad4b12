"""Recipes of published results, to the letter: the schema's defaults with the original code's quirks."""

from ml_collections import ConfigDict

from cfmlc_jax import config as configs
from cfmlc_jax.errors import InputError

DATA_SETS = ("coco", "voc2007", "vg256")
METHODS = ("pat_t", "asl")


def mlc_pat(variant: str, *, synchronised_norms: bool = False) -> ConfigDict:
    """MLC-PAT's recipe (its run.sh; arXiv:2404.06287), unlocked, for a data set and a method.

    Its PAT-T trains 128 images at a time on four GPUs. Each has batch statistics of its own, and
    all epochs have one order. Its baseline, plain ASL training, is a script for one GPU, where
    neither is so; for comparison the batch is the same here.

    Args:
        variant: a data set, a method, or both, as "voc2007,asl"; what is not said is coco, pat_t.
        synchronised_norms: the model's statistics are those of all GPUs.

    Raises:
        InputError: another variant.
    """
    data_set, method = _parse(variant)
    config = configs.default()
    config.data.source = data_set
    config.method = method
    if method == "asl":
        config.model.attention = "none"
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
