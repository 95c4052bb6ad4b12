"""Strict conversion of classifiers' weights from PyTorch to our variables and back: unmatched entries are errors.

The tables of names are beside the modules (`models.torch_names`); this file applies them.
"""

import dataclasses
import functools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import unflatten_dict

from cfmlc_jax import installed
from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.classifier import Classifier
from cfmlc_jax.models.layers.norms import BatchNorm
from cfmlc_jax.models.torch_names import (
    BRANCHES,
    Dialect,
    HeadNames,
    Table,
    from_torch_layout,
    to_torch_layout,
    torch_key,
)
from cfmlc_jax.torch_weights import strict

# InPlaceABN's scale is |weight| plus this.
_IN_PLACE = np.float32(1e-5)
# Stage (if there are several) and number of a backbone's block, in the names of all backbones and dialects.
_BLOCK = re.compile(
    r"\b(?:(?:layer|layers\.|stage|stages\.|features\.(?=[1357]\.))(\d+)\.(?:blocks\.)?|blocks\.|encoder_layer_)(\d+)\."
)
_INSIDE = re.compile(r"\b(?:layer|layers\.|stage|stages\.|features\.|blocks\.)\d+\.")
# Names of modules that contain a moving average.
_AVERAGED = re.compile("ema|averag|swa|shadow|teacher|momentum", re.IGNORECASE)
# Names of transformers that are not read, and who gives them: timm has the same weights under names that are.
_FOREIGN = (
    (re.compile(r"(?:.*\.)?transformer\.resblocks\.0\."), "OpenAI's CLIP or OpenCLIP"),
    (
        re.compile(r".*\b(?:self_attn\.q_proj|attention\.attention\.query|layer\.0\.attention\.q_proj)\."),
        "the package transformers",
    ),
)
# Numbers of classes of ImageNet-1k, and those in use for ImageNet-12k and ImageNet-21k.
_IMAGENET = (1000, 10450, 11221, 11821, 21841, 21842, 21843)


class Architecture(NamedTuple):
    """The options of a model, besides its backbone, inferred from its state_dict.

    num_classes: k; 0 for a backbone without a head.
    attention: a key of `torch_names.BRANCHES`; "none" without a head.
    head: a key of `catalogue.HEADS` with names in PyTorch; "" without a head.
    queries: number of queries of an ML-Decoder head; 0 for others.
    writer: library whose names the entries have, as in `torch_names.Dialect`; "" for those of our tables.
    """

    num_classes: int
    attention: str
    head: str
    queries: int
    writer: str = ""


def unwrapped(
    state_dict: Mapping[str, np.ndarray],
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray] | None]:
    """(entries of the model without the path of the module around it, entries of its moving average or None).

    Lightning saves a model under the name of an attribute ("model.", "net." or any other), and its
    average under another ("ema_model." or similar). The model is found by the kernel of its first
    layer. Entries outside keep their names. If there is only an average, it is the model.

    Raises:
        InputError: there are several models, and their names do not say which one is an average.
    """
    paths = _paths_of_models(state_dict)
    averages = [path for path in paths if _AVERAGED.search(path)]
    models = [path for path in paths if path not in averages] or averages[:1]
    averages = [path for path in averages if path not in models]
    models = [""] if "" in models else models
    if len(models) > 1 or len(averages) > 1:
        raise InputError(
            f"the entries belong to several models ({strict.some(path or 'no prefix' for path in paths)}); save "
            "one of them: torch.save(model.state_dict(), FILE)"
        )
    if not models:
        return dict(state_dict), None
    average = {key for key in state_dict if averages and key.startswith(averages[0])}
    weights = {key.removeprefix(models[0]): array for key, array in state_dict.items() if key not in average}
    if not average:
        return weights, None
    return weights, {key.removeprefix(averages[0]): state_dict[key] for key in state_dict if key in average}


def _paths_of_models(state_dict):
    """The path before the names of each outermost model among the entries: "" or a path that ends with a dot.

    A module with less than an eighth of the entries is not a model, but a layer that happens to have such a name.
    """
    paths = set()
    for key in state_dict:
        stem = next((stem for stem in _stems() if key == stem or key.endswith(f".{stem}")), None)
        # Stages and blocks contain layers with such names, too.
        if stem is not None and not _INSIDE.search(key.removesuffix(stem)):
            paths.add(key.removesuffix(stem))
    outer = [path for path in paths if not any(path != x and path.startswith(x) for x in paths if x)]
    sizes = {path: sum(key.startswith(path) for key in state_dict) for path in outer}
    return sorted(path for path in outer if 8 * sizes[path] >= len(state_dict))


@functools.cache
def _stems():
    """Keys of the first layers' kernels of all backbones, plain and in Query2Label, the longest first."""
    names = [backbone.torch for backbone in catalogue.BACKBONES.values()]
    plain = {stem for table in names for stem in (table.stem, *(dialect.sign for dialect in table.dialects))}
    within = {f"{table.query2label}.{table.stem}" for table in names}
    return sorted(plain | within, key=len, reverse=True)


def recognise(state_dict: Mapping[str, Any], *, allow: Sequence[str] = ()) -> str:
    """The name of the model whose entries these are (`unwrapped`), one of `catalogue.names`.

    Raises:
        InputError: the entries fit no model, or several.
    """
    _refuse_foreign(state_dict)
    depths = _depths(state_dict)
    candidates = [
        name for name in catalogue.names() if _is_near(name, state_dict) and _depths_of(name) == depths
    ]
    if not depths:  # a backbone without blocks is recognised by its first layer alone
        candidates = [name for name in candidates if _stem(name) in state_dict]
    differences = {name: _difference(name, state_dict, allow) for name in candidates}
    fitting = [name for name in candidates if not differences[name]]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise InputError(f"the weights fit {' and '.join(fitting)}; choose one by --model")
    if not candidates:
        raise InputError(
            f"the weights fit no known model: {len(state_dict)} entries ({strict.some(state_dict, 3)}), stages of "
            f"{', '.join(map(str, depths)) or 'no'} blocks; {installed.document('weights.md')} lists the known models"
        )
    nearest = min(candidates, key=lambda name: len(differences[name]))
    others = [name for name in candidates if name != nearest]
    raise InputError(
        f"these are not the weights of {nearest}: {differences[nearest]}"
        + (f"; nor of {', '.join(others)}" if others else "")
    )


def _refuse_foreign(state_dict):
    writers = (writer for sign, writer in _FOREIGN if any(map(sign.match, state_dict)))
    writer = next(writers, None)
    if writer is not None:
        raise InputError(
            f"the entries are named as by {writer}, and those names are not read; take timm's weights of the same model, "
            "such as hf:timm/vit_base_patch16_clip_224.openai, or save timm's model: torch.save(model.state_dict(), FILE)"
        )


def fits(name: str, state_dict: Mapping[str, Any]) -> bool:
    """Whether all entries (`unwrapped`) are those of a model, one of `catalogue.names`."""
    near = _is_near(name, state_dict) and _depths_of(name) == _depths(state_dict)
    return near and not _difference(name, state_dict, ())


def _is_near(name, state_dict):
    """Whether the entries are nested as in the model: with its backbone in a Query2Label, or plain."""
    inside = any(key.startswith("backbone.") for key in state_dict)
    return name.startswith(catalogue.QUERY2LABEL) == inside


def _depths(state_dict):
    """Number of blocks in each stage, from the keys."""
    blocks = {match.groups() for match in map(_BLOCK.search, state_dict) if match}
    stages = sorted({int(stage or 0) for stage, _ in blocks})
    return tuple(sum(int(stage or 0) == wanted for stage, _ in blocks) for wanted in stages)


def _depths_of(name):
    backbone, _ = catalogue.parts(name)
    module = backbone.create(dtype=jnp.float32, norm=BatchNorm)
    return tuple(module.depths if hasattr(module, "depths") else getattr(module, "stage_sizes", ()))


def _stem(name):
    """The key of the first layer's kernel."""
    names = catalogue.parts(name)[0].torch
    return f"{names.query2label}.{names.stem}" if name.startswith(catalogue.QUERY2LABEL) else names.stem


def normalisation(name: str, arch: Architecture) -> str:
    """The normalisation that weights expect, a key of `normalise.NORMALISATIONS`; "" for pixels in [0, 1].

    It follows from the architecture and from whose names the entries have: plain ImageNet classifiers, models of images
    and texts, and backbones alone are trained with standardised pixels; models of MLC-PAT, Query2Label and MIIL are not.
    """
    if arch.head not in ("", "linear") or arch.attention != "none" or name.startswith(catalogue.QUERY2LABEL):
        return ""
    names = catalogue.parts(name)[0].torch
    stated = {dialect.writer: dialect.normalisation for dialect in names.dialects}.get(arch.writer)
    usual = names.normalisation if stated is None else stated
    published = dict.fromkeys((0, *_IMAGENET), usual) | dict(names.embeddings)
    return published.get(arch.num_classes, "")


def architecture(name: str, state_dict: Mapping[str, Any]) -> Architecture:
    """Classes, attention, head and queries, from the head's entries.

    Raises:
        InputError: an unknown model, or an entry of the head without classes.
    """
    backbone, _ = catalogue.parts(name)
    dialect = _dialect(name, state_dict)
    renamed, writer = _renamed(dialect), "" if dialect is None else dialect.writer
    for head, names in _heads(name):
        for attention in ("cross", "self", "none"):
            branches = names.branches(attention, names.prefix(backbone.torch))
            keys = [renamed(f"{path}.{names.bias}") for path in branches.values()]
            biases = [key for key in keys if key in state_dict]
            # A head with missing entries is still that head; they are reported as missing.
            last = keys[-1].removesuffix(names.bias)
            if biases and any(key.startswith(last) for key in state_dict):
                queries = renamed(f"{branches['whole']}.{names.queries}") if names.queries else ""
                return Architecture(
                    _length(biases[0], state_dict, axis=-1),
                    attention,
                    head,
                    _length(queries, state_dict, axis=0) if queries else 0,
                    writer,
                )
    return Architecture(0, "none", "", 0, writer)


def _length(key, state_dict, *, axis):
    """Length of an entry's axis.

    Raises:
        InputError: the entry is missing or empty.
    """
    shape = np.shape(state_dict[key]) if key in state_dict else ()
    if not shape or not shape[axis]:
        shown = list(shape) if key in state_dict else "missing"
        raise InputError(
            f"{key}, from which the head is recognised, is {shown}; save the weights of the whole model"
        )
    return shape[axis]


def _dialect(name, state_dict) -> Dialect | None:
    """The dialect of the entries' names; None if they are the names of our tables."""
    if name.startswith(catalogue.QUERY2LABEL):
        return None
    dialects = catalogue.parts(name)[0].torch.dialects
    return next((dialect for dialect in dialects if dialect.sign in state_dict), None)


def _renamed(dialect):
    return (lambda key: key) if dialect is None else dialect.key


def model(name: str, arch: Architecture, *, image_size: int = 0) -> Classifier:
    """The classifier of an architecture, by default at the smallest image size that suits it.

    For a backbone without a head it has a single class.
    """
    fields = catalogue.Model(name, arch.head or "linear", ml_decoder=catalogue.MLDecoderFields(arch.queries))
    patches = None if arch.attention == "none" else catalogue.Patches(arch.attention)
    return catalogue.create(fields, arch.num_classes or 1, image_size or _least_size(name), patches)


def from_torch(
    name: str,
    state_dict: Mapping[str, Any],
    *,
    allow: Sequence[str] = (),
    in_place_norms: bool | None = None,
    report: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Our variables {"params", "batch_stats"} of a model, as float32 numpy arrays.

    Classes, attention and head are inferred from the state_dict (`architecture`). Missing entries that
    `allow` permits get initial values (seed 0). A backbone without a head yields the variables of the
    backbone only.

    Args:
        name: a model of `models.catalogue`.
        state_dict: arrays or CPU tensors by key, `unwrapped`.
        allow: regular expressions of keys that may be left over or missing.
        in_place_norms: whether norm weights w act as |w| + 1e-5; None: as in the family's
            published checkpoints (no with timm's names).
        report: called with a line for every entry, which says where it went.

    Raises:
        InputError: left over, missing or mis-shaped entries, which are listed; an unknown model; in-place
            norms with timm's names.
    """
    backbone, _ = catalogue.parts(name)
    arch = architecture(name, state_dict)
    dialect = _dialect(name, state_dict)
    entries = _entries_in(dialect, name, arch)
    in_place = _are_in_place(backbone, in_place_norms, dialect)
    difference = _difference(name, state_dict, allow)
    if difference:
        _refuse_foreign(state_dict)
        raise InputError(f"these are not the weights of {name}: {difference}")
    initial = {}
    if any(entry.key not in state_dict for entry in entries):
        init, arguments = _initial(model(name, arch), name)
        initial = strict.leaves(jax.jit(init)(*arguments))
    variables = {}
    for entry in entries:
        leaf = entry.path[-1]
        if entry.key in state_dict:
            array = from_torch_layout(leaf, np.asarray(state_dict[entry.key], np.float32))
            note = ""
            if in_place and _is_norm_of_backbone(entry.path):
                array, note = np.abs(array) + _IN_PLACE, "  |w| + 1e-5"
        else:
            array, note = initial[entry.path], "  (missing: initial values)"
        variables[entry.path] = np.ascontiguousarray(array)
        if report:
            report(f"{entry.key} {list(entry.torch_shape)} -> {'/'.join(entry.path)}{note}")
    if report:
        for key in sorted(state_dict.keys() - {entry.key for entry in entries}):
            report(f"{key} -> (not used)")
    return {"batch_stats": {}} | unflatten_dict(variables)


def to_torch(
    name: str, variables: Mapping[str, Any], *, image_size: int = 448, in_place_norms: bool | None = None
) -> dict[str, np.ndarray]:
    """The state_dict of a model's variables, as numpy arrays: the inverse of `from_torch`.

    Arrays are bit-identical, with two exceptions: batch counters are 0, and the weight of
    an in-place norm becomes positive, with the same scale.

    Args:
        name: a model of `models.catalogue`.
        variables: {"params", "batch_stats"}.
        image_size: pixels; some models store tables that depend on it.
        in_place_norms: as in `from_torch`.

    Raises:
        InputError: a scale that an in-place norm cannot have (below 1e-5), or variables of another model.
    """
    backbone, _ = catalogue.parts(name)
    in_place = backbone.torch.in_place_norms if in_place_norms is None else in_place_norms
    arch = _attention_and_head(name, variables)
    table = _table(name, arch)
    counted = backbone.torch.counts_batches and not _has_frozen_norms(name)
    state_dict = {}
    for path, leaf in strict.leaves(variables).items():
        key = torch_key(path[1:], table)
        array = np.asarray(leaf)
        if in_place and _is_norm_of_backbone(path):
            array = _in_place_weight(key, array)
        state_dict[key] = np.ascontiguousarray(to_torch_layout(path[-1], array))
        if counted and path[-1] == "var":
            state_dict[strict.counter(key)] = np.zeros((), np.int64)
    for derived in _derived(name, arch):
        state_dict |= derived(state_dict, image_size)
    return state_dict


def _are_in_place(backbone, in_place_norms, dialect):
    if dialect and in_place_norms:
        raise InputError(
            f"in_place_norms=True does not go with {dialect.writer}'s names ({dialect.sign}): {dialect.writer} "
            "stores the scales themselves; omit in_place_norms"
        )
    if in_place_norms is None:
        return backbone.torch.in_place_norms and not dialect
    return in_place_norms


def _least_size(name):
    stride = catalogue.parts(name)[0].stride
    return stride * max(
        1, 64 // stride
    )  # at least 64, because some layers need more than one pixel in the last map


def _initial(classifier, name):
    size = _least_size(name)
    init = functools.partial(classifier.init, train=False)
    return init, (jax.random.key(0), jnp.zeros((1, 1, size, size, 3)))


def _entries_in(dialect, name, arch) -> list[strict.Entry]:
    """All variables of a model, with their keys in a state_dict of this dialect."""
    renamed = _renamed(dialect)
    return [entry._replace(key=renamed(entry.key)) for entry in _entries(name, arch)]


@functools.lru_cache(maxsize=64)
def _entries(name, arch) -> tuple[strict.Entry, ...]:
    init, arguments = _initial(model(name, arch), name)
    every = strict.entries(jax.eval_shape(init, *arguments), _table(name, arch))
    return tuple(entry for entry in every if arch.head or entry.path[1] == "backbone")


def _table(name, arch) -> Table:
    """Our paths -> PyTorch's, for the whole classifier."""
    backbone, _ = catalogue.parts(name)
    body = f"{backbone.torch.query2label}." if name.startswith(catalogue.QUERY2LABEL) else ""
    head: Table = ()
    if arch.head:
        names = dict(_heads(name))[arch.head]
        head = names.table(arch.attention, names.prefix(backbone.torch))
    return (
        *((rf"backbone\.{pattern}", body + replacement) for pattern, replacement in backbone.torch.modules),
        (r"backbone", body.removesuffix(".")),
        *((rf"head\.{pattern}", replacement) for pattern, replacement in head),
        (r"head", ""),
    )


def _attention_and_head(name, variables):
    """The architecture of our variables, without numbers of classes and queries, on which names do not depend."""
    if "head" not in variables["params"]:
        return Architecture(0, "none", "", 0)
    own = set(variables["params"]["head"])
    branches = {branch for names in BRANCHES.values() for branch in names}
    for attention, names in BRANCHES.items():
        if own & branches == set(names):
            for head, head_names in _heads(name):
                bias = head_names.bias.rpartition(".")[2]
                if bias in variables["params"]["head"]["whole"]:
                    return Architecture(0, attention, head, 0)
    raise InputError(f"variables with a head of {', '.join(sorted(own))} are not those of {name}")


def _difference(name, state_dict, allow) -> strict.Difference:
    """The difference between a state_dict and the entries of a model."""
    arch, dialect = architecture(name, state_dict), _dialect(name, state_dict)
    wanted = {entry.key: entry.torch_shape for entry in _entries_in(dialect, name, arch)}
    unread = _unread(name, arch, dialect)
    unused = re.compile((not arch.head and catalogue.parts(name)[0].torch.unread) or r"(?!)")
    read = {
        key: array
        for key, array in state_dict.items()
        if key in wanted or not (key in unread or key.endswith(strict.COUNTER) or unused.fullmatch(key))
    }
    difference = strict.compare(wanted, read).without(allow)
    if arch.head:
        return difference
    missing = (*difference.missing, *_missing_of_head(name, dialect, difference.left_over))
    return dataclasses.replace(difference, missing=missing).without(allow)


def _missing_of_head(name, dialect, left_over):
    """Keys that are missing for a head if left over entries belong to an incomplete head; at most one."""
    backbone, _ = catalogue.parts(name)
    renamed = _renamed(dialect)
    biases = []
    for _, names in _heads(name):
        path = names.prefix(backbone.torch)
        bias = renamed(f"{path}.{names.bias}")
        if any(key.startswith(bias.removesuffix(names.bias)) for key in left_over):
            biases.append(bias)
    return biases[:1]


@functools.lru_cache(maxsize=64)
def _unread(name, arch, dialect):
    """Keys of entries that are not weights but follow from the architecture, at any image size."""
    wanted = {entry.key: entry.torch_shape for entry in _entries(name, arch)}
    # Also at twice the least size: at the least size Swin's last stage has one window and no mask.
    sizes = (_least_size(name), 2 * _least_size(name))
    renamed = _renamed(dialect)
    return {
        renamed(key) for function in _derived(name, arch) for size in sizes for key in function(wanted, size)
    }


def _derived(name, arch):
    """Functions (state_dict of arrays or shapes, image size) -> entries that are not weights."""
    backbone, _ = catalogue.parts(name)
    heads = [names.derived for head, names in _heads(name) if head == arch.head]
    return [function for function in (backbone.torch.derived, *heads) if function]


def _heads(name) -> list[tuple[str, HeadNames]]:
    """The heads that a model can have and that PyTorch files can contain, with their names."""
    _, heads = catalogue.parts(name)
    return [(head, names) for head in heads if (names := catalogue.HEADS[head].torch) is not None]


def _has_frozen_norms(name):
    return name.startswith(catalogue.QUERY2LABEL) and catalogue.parts(name)[0].frozen_norms


def _is_norm_of_backbone(path):
    return path[1] == "backbone" and path[-1] == "scale"


def _in_place_weight(key, scale):
    """The positive w with w + 1e-5 = scale in float32."""
    if (scale < _IN_PLACE).any():
        raise InputError(
            f"{key}: a scale of {scale.min():g} is below 1e-5, which in-place norms cannot have; "
            "convert with in_place_norms=False"
        )
    weight = scale - _IN_PLACE
    # The subtraction is rounded, and so is the later sum; one of the neighbours gives the scale exactly.
    for candidate in (np.nextafter(weight, np.float32(0)), np.nextafter(weight, np.float32(np.inf))):
        weight = np.where(weight + _IN_PLACE == scale, weight, candidate)
    return weight
