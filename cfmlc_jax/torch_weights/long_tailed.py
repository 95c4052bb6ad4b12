"""Checkpoints of the long-tailed reference (Tang et al., NeurIPS 2020) to our variables and back. Strict.

Its files hold two state_dicts, "feat_model" and "classifier", whose keys all begin with the
"module." of parallel training, and beside them "embed", the moving average of the features.
"""

import functools
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.layers.norms import BatchNorm
from cfmlc_jax.models.torch_names import from_torch_layout, to_torch_layout, torch_key
from cfmlc_jax.torch_weights import mlc_pat, strict

# Weights of the best epoch, in the file of a finished run, and of the latest, in the one beside it.
BEST, LATEST = "state_dict_best", "state_dict"
BACKBONE, CLASSIFIER, MEAN_FEATURE = "feat_model", "classifier", "embed"
BRANCH = "whole"
# Classifiers by the head of `models.catalogue` that they are.
HEADS = {"causal_norm": "causal", "dot_product": "plain", "lws": "scaled"}
_PARALLEL = "module."
_COUNTER = "num_batches_tracked"


class _Classifier(NamedTuple):
    """keys: in the state_dict, by our parameters' names. has_mean: the moving average is a variable of ours.

    All files of the reference have the moving average; only the causal classifier reads it.
    """

    keys: dict[str, str]
    has_mean: bool = False


_CLASSIFIERS = {
    "causal": _Classifier({"kernel": "weight"}, has_mean=True),
    "plain": _Classifier({"kernel": "fc.weight"}),
    "scaled": _Classifier({"kernel": "fc.weight", "bias": "fc.bias", "scales": "scales"}),
}


def from_torch(name: str, checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Variables {"params", "batch_stats"}, each {"backbone", "head": {"whole"}}, of a checkpoint, as float32 arrays.

    Args:
        name: a backbone of `models.catalogue`.
        checkpoint: as the reference saves it: `BEST` (taken first) or `LATEST` with the
            state_dicts, arrays or CPU tensors by key, and `MEAN_FEATURE`.

    Raises:
        InputError: parts or entries that are missing, left over or mis-shaped, listed; a classifier
            of another number of features.
    """
    weights = _part(checkpoint, BEST if BEST in checkpoint else LATEST, "checkpoint")
    backbone = backbone_from_torch(name, _part(weights, BACKBONE, "weights"))
    head = classifier_from_torch(_part(weights, CLASSIFIER, "weights"), checkpoint.get(MEAN_FEATURE))
    given, taken = _abstract(name)[0], head["params"]["kernel"].shape[0]
    # A classifier is its head's branch for wholes.
    if given != taken:
        raise InputError(
            f"the classifier takes {taken} features and {name} gives {given}; name the backbone of the checkpoint"
        )
    parts = {"backbone": backbone, "head": head}
    return {
        collection: {
            part: variables[collection] if part == "backbone" else {BRANCH: variables[collection]}
            for part, variables in parts.items()
            if variables[collection]
        }
        for collection in ("params", "batch_stats")
    }


def recognise(checkpoint: Mapping[str, Any]) -> str:
    """The backbone, a key of `catalogue.BACKBONES`, of a checkpoint as `from_torch` takes it.

    Raises:
        InputError: parts that are missing; entries of no backbone here, or of several.
    """
    weights = _part(checkpoint, BEST if BEST in checkpoint else LATEST, "checkpoint")
    return mlc_pat.recognise(_without_prefix(_part(weights, BACKBONE, "weights")))


def to_torch(name: str, variables: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint of variables as `from_torch` gives them: its inverse, but for counters of batches (0).

    The weights are there both as best and as latest, since the reference reads one or the other,
    depending on the data set.

    Raises:
        InputError: variables of another model.
    """
    collections = ("params", "batch_stats")
    backbone = {collection: variables[collection].get("backbone", {}) for collection in collections}
    head = {collection: variables[collection].get("head", {}).get(BRANCH, {}) for collection in collections}
    classifier, mean_feature = classifier_to_torch(head)
    weights = {
        BACKBONE: _with_prefix(backbone_to_torch(name, backbone)),
        CLASSIFIER: _with_prefix(classifier),
    }
    return {BEST: weights, LATEST: weights, MEAN_FEATURE: mean_feature}


def head_of(variables: Mapping[str, Any]) -> str:
    """The head, a key of `HEADS`, of variables as `from_torch` gives them.

    Raises:
        InputError: variables of no classifier of the reference.
    """
    params = variables["params"]["head"][BRANCH]
    has_mean = "head" in variables["batch_stats"]
    for head, kind in HEADS.items():
        if set(_CLASSIFIERS[kind].keys) == set(params) and _CLASSIFIERS[kind].has_mean == has_mean:
            return head
    raise InputError(f"variables {strict.some(sorted(params))} are those of no classifier of the reference")


def backbone_from_torch(name: str, state_dict: Mapping[str, Any]) -> dict[str, Any]:
    """Variables {"params", "batch_stats"} of a backbone alone, as float32 numpy arrays.

    Args:
        name: a backbone of `models.catalogue`.
        state_dict: arrays or CPU tensors by key, with or without "module.".

    Raises:
        InputError: left over, missing or mis-shaped entries, listed; an unknown backbone.
    """
    state_dict = _without_prefix(state_dict)
    wanted = _backbone_entries(name)
    shapes = {
        key: to_torch_layout(path[-1], np.broadcast_to(np.float32(0), shape)).shape
        for key, (path, shape) in wanted.items()
    }
    counted = {key: value for key, value in state_dict.items() if not key.endswith(_COUNTER)}
    strict.require_same(f"the weights of {name}", shapes, counted)
    return unflatten_dict(
        {
            path: np.ascontiguousarray(from_torch_layout(path[-1], np.asarray(state_dict[key], np.float32)))
            for key, (path, _) in wanted.items()
        }
    )


def backbone_to_torch(name: str, variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The state_dict, without "module.", of a backbone's variables: the inverse of `backbone_from_torch`.

    Counters of batches are 0.

    Raises:
        InputError: variables of another backbone.
    """
    leaves = flatten_dict({key: variables[key] for key in ("params", "batch_stats") if key in variables})
    wanted = _backbone_entries(name)
    named = {path: key for key, (path, _) in wanted.items()}
    strict.require_same(
        f"the variables of {name}",
        {"/".join(path): shape for path, shape in wanted.values()},
        {"/".join(path): leaf for path, leaf in leaves.items()},
    )
    state_dict = {}
    for path, key in named.items():
        state_dict[key] = np.ascontiguousarray(to_torch_layout(path[-1], np.asarray(leaves[path])))
        if path[-1] == "var":
            state_dict[key.replace("running_var", _COUNTER)] = np.zeros((), np.int64)
    return state_dict


def classifier_from_torch(state_dict: Mapping[str, Any], mean_feature: Any) -> dict[str, Any]:
    """Variables of a classifier of k classes: "params" with "kernel" [d, k], "batch_stats" with "mean_feature" [d].

    The causal classifier has one matrix and the mean; the plain one (`fc`) a matrix only; learnable
    weight scaling a "bias" and "scales" [k] too.

    Args:
        state_dict: arrays or CPU tensors by key, with or without "module.".
        mean_feature: [d], the moving average of the features that the causal classifier goes with.

    Raises:
        InputError: entries of no classifier of the reference, arrays of other shapes, no mean where
            the classifier needs one.
    """
    state_dict = _without_prefix(state_dict)
    classifier = next((c for c in _CLASSIFIERS.values() if set(c.keys.values()) == set(state_dict)), None)
    if classifier is None:
        known = "; ".join(f"{kind}: {', '.join(c.keys.values())}" for kind, c in _CLASSIFIERS.items())
        raise InputError(
            f"the entries {strict.some(sorted(state_dict))} are no classifier's (known are {known})"
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

    A classifier without a mean gets zeros, as which the reference's begins.

    Raises:
        InputError: parameters of no classifier of the reference.
    """
    params, means = variables["params"], variables.get("batch_stats", {})
    classifier = next(
        (
            c
            for c in _CLASSIFIERS.values()
            if set(c.keys) == set(params) and c.has_mean == ("mean_feature" in means)
        ),
        None,
    )
    if classifier is None:
        found = sorted(set(params) | set(means))
        raise InputError(f"variables {strict.some(found)} are those of no classifier of the reference")
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
            "remove; give a file that the reference's training wrote"
        )
    mean = np.array(array, np.float32)
    if mean.shape != (d,):
        raise InputError(
            f"{MEAN_FEATURE!r} is {list(mean.shape)}, the classifier's features are [{d}]; "
            "both must be of one checkpoint"
        )
    return mean


def _part(whole, key, what):
    part = whole.get(key)
    if not isinstance(part, Mapping):
        raise InputError(
            f"no {key!r} in the {what} (keys: {strict.some(sorted(map(str, whole)))}); "
            "give a file that the reference's training wrote"
        )
    return part


def _without_prefix(state_dict):
    while state_dict and all(key.startswith(_PARALLEL) for key in state_dict):
        state_dict = {key.removeprefix(_PARALLEL): value for key, value in state_dict.items()}
    return state_dict


def _with_prefix(state_dict):
    # The reference drops keys without it and goes on with random weights.
    return {_PARALLEL + key: value for key, value in state_dict.items()}


@functools.cache
def _abstract(name):
    """A backbone's number of features, and the shapes of its variables by path."""
    backbone = _backbone(name)
    size = backbone.stride * max(1, 64 // backbone.stride)
    init = functools.partial(backbone.create(dtype=jnp.float32, norm=BatchNorm).init_with_output, train=False)
    features, variables = jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, size, size, 3)))
    shapes = {path: leaf.shape for path, leaf in flatten_dict(variables).items()}
    return features["pooled"].shape[-1], shapes


def _backbone(name):
    if name not in catalogue.BACKBONES:
        raise InputError(f"backbone {name!r} is not one of {', '.join(catalogue.BACKBONES)}")
    return catalogue.BACKBONES[name]


def _backbone_entries(name):
    """Path and shape of ours by PyTorch's key."""
    table = _backbone(name).torch.modules
    return {torch_key(path[1:], table): (path, shape) for path, shape in _abstract(name)[1].items()}
