"""Strict conversion of checkpoints of the long-tailed reference (Tang et al., NeurIPS 2020), both ways.

Its files contain two state_dicts, "feat_model" and "classifier", whose keys all have the prefix
"module." of parallel training, and "embed", the moving average of the features.
"""

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.layers.norms import BatchNorm
from cfmlc_jax.models.torch_names import from_torch_layout, to_torch_layout
from cfmlc_jax.torch_weights import files, mlc_pat, strict

# Keys of the best epoch's weights (in the file of a finished run) and of the latest (in the file beside it).
BEST, LATEST = "state_dict_best", "state_dict"
BACKBONE, CLASSIFIER, MEAN_FEATURE = "feat_model", "classifier", "embed"
BRANCH = "whole"
# Head of `models.catalogue` -> kind of classifier of the reference.
HEADS = {"causal_norm": "causal", "dot_product": "plain", "lws": "scaled"}
_COLLECTIONS = ("params", "batch_stats")
_WAY_OUT = "give a file that the reference's training wrote, final_ or latest_model_checkpoint.pth"


class _Classifier(NamedTuple):
    """A kind of classifier of the reference.

    keys: our parameters' names -> keys in the state_dict.
    has_mean: whether the moving average is one of our variables. All files of the reference have it, but only
        the causal classifier reads it.
    """

    keys: dict[str, str]
    has_mean: bool = False


_CLASSIFIERS = {
    "causal": _Classifier({"kernel": "weight"}, has_mean=True),
    "plain": _Classifier({"kernel": "fc.weight"}),
    "scaled": _Classifier({"kernel": "fc.weight", "bias": "fc.bias", "scales": "scales"}),
}


def is_checkpoint(stored: Any) -> bool:
    """Whether the result of `files.load` has this reference's state_dicts of a backbone and a classifier."""
    if not isinstance(stored, Mapping):
        return False
    weights = (stored.get(key) for key in (BEST, LATEST))
    return any(isinstance(parts, Mapping) and {BACKBONE, CLASSIFIER} <= set(parts) for parts in weights)


def read(path: Path) -> dict[str, Any]:
    """A file's `BEST` and `LATEST` state_dicts (at least one) and its `MEAN_FEATURE`, as numpy arrays.

    Raises:
        InputError: PyTorch is missing; the file cannot be read, is damaged, or has other content.
    """
    path = Path(path)
    return checkpoint_in(path, files.load(path))


def checkpoint_in(path: Path, stored: Any) -> dict[str, Any]:
    """As `read`, from the result of `files.load`.

    Raises:
        InputError: it is not a checkpoint of the reference.
    """
    if not isinstance(stored, Mapping) or not any(
        isinstance(stored.get(key), Mapping) for key in (BEST, LATEST)
    ):
        raise InputError(f"{path} has neither {BEST!r} nor {LATEST!r}; {_WAY_OUT}")
    checkpoint: dict[str, Any] = {
        key: {part: _arrays(path, part, entries) for part, entries in stored[key].items()}
        for key in (BEST, LATEST)
        if isinstance(stored.get(key), Mapping)
    }
    if MEAN_FEATURE in stored:
        checkpoint[MEAN_FEATURE] = files.numpy_floats(path, MEAN_FEATURE, stored[MEAN_FEATURE])
    return checkpoint


def _arrays(path, part, entries):
    if not isinstance(entries, Mapping):
        raise InputError(f"{path}: {part!r} is a {type(entries).__name__}, not a state_dict; {_WAY_OUT}")
    return files.arrays(path, entries)


def write(path: Path, checkpoint: Mapping[str, Any]) -> None:
    """Write the result of `to_torch` to a file that the reference reads, atomically.

    The file has no training record: "epoch", "best_epoch" and "best_acc" are 0.

    Raises:
        InputError: PyTorch is missing, or the file cannot be written.
    """
    path = Path(path)
    torch = files.import_torch(f"to write {path}")
    contents: dict[str, Any] = {
        key: {part: files.tensors(torch, entries) for part, entries in checkpoint[key].items()}
        for key in (BEST, LATEST)
    }
    contents |= {"epoch": 0, "best_epoch": 0, "best_acc": 0.0}
    contents[MEAN_FEATURE] = np.asarray(checkpoint[MEAN_FEATURE], np.float32)
    files.save(torch, path, contents)


def from_torch(name: str, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Variables {"params", "batch_stats"}, each {"backbone", "head": {"whole"}}, of a checkpoint, as float32 arrays.

    Args:
        name: a backbone of `models.catalogue`.
        checkpoint: in the reference's format: `BEST` (preferred) or `LATEST` with the
            state_dicts, arrays or CPU tensors by key, and `MEAN_FEATURE`.

    Raises:
        InputError: parts or entries that are missing, left over or mis-shaped, which are listed; or a
            classifier of another number of features.
    """
    weights = _part(checkpoint, BEST if BEST in checkpoint else LATEST, "checkpoint")
    backbone = backbone_from_torch(name, _part(weights, BACKBONE, "weights"))
    head = classifier_from_torch(_part(weights, CLASSIFIER, "weights"), checkpoint.get(MEAN_FEATURE))
    backbone_features, classifier_features = _abstract(name)[0], head["params"]["kernel"].shape[0]
    if backbone_features != classifier_features:
        raise InputError(
            f"the classifier needs {classifier_features} features, but {name} has {backbone_features}; "
            "give the backbone of the checkpoint"
        )
    # A classifier is its head's branch for whole views.
    parts = {"backbone": backbone, "head": head}
    return {
        collection: {
            part: variables[collection] if part == "backbone" else {BRANCH: variables[collection]}
            for part, variables in parts.items()
            if variables[collection]
        }
        for collection in _COLLECTIONS
    }


def recognise(checkpoint: Mapping[str, Any]) -> str:
    """The backbone of a checkpoint in the reference's format, a key of `catalogue.BACKBONES`.

    Raises:
        InputError: parts are missing; or the entries fit no backbone, or several.
    """
    weights = _part(checkpoint, BEST if BEST in checkpoint else LATEST, "checkpoint")
    return mlc_pat.recognise(strict.without_parallel(_part(weights, BACKBONE, "weights")))


def to_torch(name: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint of variables, the inverse of `from_torch`, with batch counters of 0.

    The weights are stored both as best and as latest, because the reference reads one or the other,
    depending on the data set.

    Raises:
        InputError: variables of another model.
    """
    backbone = {collection: variables[collection].get("backbone", {}) for collection in _COLLECTIONS}
    head = {collection: variables[collection].get("head", {}).get(BRANCH, {}) for collection in _COLLECTIONS}
    classifier, mean_feature = classifier_to_torch(head)
    weights = {
        BACKBONE: _with_prefix(backbone_to_torch(name, backbone)),
        CLASSIFIER: _with_prefix(classifier),
    }
    return {BEST: weights, LATEST: weights, MEAN_FEATURE: mean_feature}


def head_of(variables: Mapping[str, Any]) -> str:
    """The head of variables from `from_torch`, a key of `HEADS`.

    Raises:
        InputError: the reference has no such classifier.
    """
    params, means = (variables[collection].get("head", {}).get(BRANCH, {}) for collection in _COLLECTIONS)
    kind = _kind_of(params, means)
    return next(head for head, known in HEADS.items() if known == kind)


def _kind_of(params, means):
    for kind, classifier in _CLASSIFIERS.items():
        if set(classifier.keys) == set(params) and classifier.has_mean == ("mean_feature" in means):
            return kind
    names = strict.some(sorted({*params, *means}))
    raise InputError(f"variables {names} belong to no classifier of the reference ({', '.join(HEADS)})")


def backbone_from_torch(name: str, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Variables {"params", "batch_stats"} of a backbone alone, as float32 numpy arrays.

    Args:
        name: a backbone of `models.catalogue`.
        state_dict: arrays or CPU tensors by key, with or without "module.".

    Raises:
        InputError: left over, missing or mis-shaped entries, which are listed; or an unknown backbone.
    """
    return strict.to_variables(
        f"the weights of {name}", _abstract(name)[1], strict.without_parallel(state_dict)
    )


def backbone_to_torch(name: str, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state_dict, without "module.", of a backbone's variables: the inverse of `backbone_from_torch`.

    Batch counters are 0.

    Raises:
        InputError: variables of another backbone.
    """
    return strict.to_state_dict(f"the variables of {name}", _abstract(name)[1], variables)


def classifier_from_torch(state_dict: Mapping[str, Any], mean_feature: Any) -> dict[str, Any]:
    """Variables of a classifier of k classes: "params" with "kernel" [d, k], "batch_stats" with "mean_feature" [d].

    The causal classifier has one matrix and the mean; the plain one (`fc`) a matrix only; learnable
    weight scaling a "bias" and "scales" [k] too.

    Args:
        state_dict: arrays or CPU tensors by key, with or without "module.".
        mean_feature: [d], the moving average of the features, which the causal classifier needs.

    Raises:
        InputError: entries that belong to no classifier of the reference, arrays of other shapes, or no mean
            feature although the classifier needs one.
    """
    state_dict = strict.without_parallel(state_dict)
    classifier = next((c for c in _CLASSIFIERS.values() if set(c.keys.values()) == set(state_dict)), None)
    if classifier is None:
        known = "; ".join(f"{kind}: {', '.join(c.keys.values())}" for kind, c in _CLASSIFIERS.items())
        raise InputError(
            f"the entries {strict.some(sorted(state_dict))} belong to no known classifier ({known})"
        )
    matrix = np.shape(state_dict[classifier.keys["kernel"]])
    if len(matrix) != 2:
        raise InputError(
            f"the classifier's {classifier.keys['kernel']} is {list(matrix)}, not [classes, features]"
        )
    shapes = {key: matrix if leaf == "kernel" else matrix[:1] for leaf, key in classifier.keys.items()}
    strict.require_same("the weights of a classifier", shapes, state_dict)
    params = {
        leaf: np.ascontiguousarray(from_torch_layout(leaf, np.asarray(state_dict[key], np.float32)))
        for leaf, key in classifier.keys.items()
    }
    if not classifier.has_mean:
        return {"params": params, "batch_stats": {}}
    return {"params": params, "batch_stats": {"mean_feature": _mean_feature(mean_feature, matrix[1])}}


def classifier_to_torch(variables: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """(state_dict without "module.", mean feature [d]) of a classifier: the inverse of `classifier_from_torch`.

    A classifier without a mean feature gets zeros, the reference's initial value.

    Raises:
        InputError: the reference has no such classifier.
    """
    params, means = variables["params"], variables.get("batch_stats", {})
    classifier = _CLASSIFIERS[_kind_of(params, means)]
    state_dict = {
        key: np.ascontiguousarray(to_torch_layout(leaf, np.asarray(params[leaf])))
        for leaf, key in classifier.keys.items()
    }
    zeros = np.zeros(params["kernel"].shape[0], np.float32)
    return state_dict, np.asarray(means.get("mean_feature", zeros))


def _mean_feature(array, d):
    if array is None:
        raise InputError(
            f"the checkpoint has no {MEAN_FEATURE!r}, without which the causal classifier has no effect to "
            f"remove; {_WAY_OUT}"
        )
    mean = np.array(array, np.float32)
    if mean.shape != (d,):
        raise InputError(
            f"{MEAN_FEATURE!r} has shape {list(mean.shape)}, but the classifier's features are [{d}]; "
            "both must come from the same checkpoint"
        )
    return mean


def _part(whole, key, what):
    part = whole.get(key)
    if not isinstance(part, Mapping):
        raise InputError(
            f"no {key!r} in the {what} (keys: {strict.some(sorted(map(str, whole)))}); {_WAY_OUT}"
        )
    return part


def _with_prefix(state_dict):
    # The reference ignores keys without the prefix and continues with random weights.
    return {strict.PARALLEL + key: value for key, value in state_dict.items()}


@functools.cache
def _abstract(name):
    """A backbone's number of features, and its entries."""
    backbone = _backbone(name)
    size = backbone.stride * max(1, 64 // backbone.stride)
    init = functools.partial(backbone.create(dtype=jnp.float32, norm=BatchNorm).init_with_output, train=False)
    features, variables = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    return features["pooled"].shape[-1], strict.entries(variables, backbone.torch.modules)


def _backbone(name):
    if name not in catalogue.BACKBONES:
        raise InputError(f"backbone {name!r} is not one of {', '.join(catalogue.BACKBONES)}")
    return catalogue.BACKBONES[name]
