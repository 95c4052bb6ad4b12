"""A classifier's weights from a file of PyTorch or safetensors, converted on the way in.

They are converted each time they are read: it takes a second or two, once for a run, and a converted copy in the cache would
double the space and outlive the converter that wrote it.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.layers.normalise import Normalisation, text_of
from cfmlc_jax.torch_weights import files, long_tailed, mlc_pat
from cfmlc_jax.weights import hub
from cfmlc_jax.weights.fetch import Named


class Pretrained(NamedTuple):
    """A classifier's weights, or a backbone's alone.

    model: a name of `models.catalogue`.
    variables: {"params", "batch_stats"}, float32 numpy arrays: the moving average if the file has one.
    branches: a key of `torch_names.BRANCHES`.
    num_classes: k; 0 without a head.
    class_names: in label order; None if they are not known.
    normalise: text of the normalisation that the weights expect (`normalise.parse`).
    """

    model: str
    variables: dict[str, Any]
    branches: str
    num_classes: int
    class_names: list[str] | None
    normalise: str


def read(path: Path, wanted: str, *, named: Named | None = None) -> Pretrained:
    """The weights of a file.

    Args:
        path: of the file.
        wanted: the model that they are for; of several models that fit, this one is chosen.
        named: what `path` was fetched by, if it was; its table knows the pixels that the weights expect.

    Raises:
        InputError: the file cannot be read; its entries are those of no model, or are missing, left over or
            mis-shaped; or it is a generator's.
    """
    stored = files.load(path)
    try:
        pretrained = _of_long_tails(path, stored) or _of_state_dict(path, stored, wanted)
    except InputError as error:
        if str(error).startswith(str(path)):
            raise
        raise InputError(f"{path}: {error}") from error
    known = expected(path, named)
    return pretrained if known is None else pretrained._replace(normalise=known)


def expected(path: Path, named: Named | None) -> str | None:
    """The normalisation that a publisher states for weights, as text; None if nothing is stated.

    Args:
        path: of their file; timm's config.json beside it is read.
        named: what it was fetched by, or None.
    """
    if named is not None and named.entry is not None:
        return text_of(named.entry.preprocessing.normalisation)
    try:
        config = json.loads((path.parent / hub.CONFIG).read_text(encoding="utf-8"))
        stated = config["pretrained_cfg"]
        return text_of(Normalisation(_colours(stated["mean"]), _colours(stated["std"])))
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def _colours(values) -> tuple[float, float, float]:
    red, green, blue = map(float, values)
    return red, green, blue


def _of_long_tails(path, stored) -> Pretrained | None:
    """The weights of a checkpoint of the long-tailed reference; None if it is not one."""
    if not long_tailed.is_checkpoint(stored):
        return None
    checkpoint = long_tailed.checkpoint_in(path, stored)
    model = long_tailed.recognise(checkpoint)
    variables = long_tailed.from_torch(model, checkpoint)
    num_classes = variables["params"]["head"][long_tailed.BRANCH]["kernel"].shape[1]
    normalise = catalogue.parts(model)[0].torch.normalisation
    return Pretrained(model, variables, "none", num_classes, None, normalise)


def _of_state_dict(path, stored, wanted) -> Pretrained:
    contents = files.weights_in(path, stored)
    weights, inner = mlc_pat.unwrapped(contents.weights)
    if contents.average is not None:
        weights, _ = mlc_pat.unwrapped(contents.average)
    elif inner is not None:
        weights = inner
    model = _model(weights, wanted)
    arch = mlc_pat.architecture(model, weights)
    names = contents.class_names
    return Pretrained(
        model=model,
        variables=mlc_pat.from_torch(model, weights),
        branches=arch.attention,
        num_classes=arch.num_classes,
        class_names=list(names) if names and len(names) == arch.num_classes else None,
        normalise=mlc_pat.normalisation(model, arch),
    )


def _model(weights: Mapping[str, np.ndarray], wanted: str) -> str:
    """The model whose entries these are: the wanted one, with or without Query2Label's head, if they fit it."""
    plain = wanted.removeprefix(catalogue.QUERY2LABEL)
    for name in (plain, catalogue.QUERY2LABEL + plain):
        if mlc_pat.fits(name, weights):
            return name
    return mlc_pat.recognise(weights)
