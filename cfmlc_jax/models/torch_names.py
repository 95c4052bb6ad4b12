"""How PyTorch checkpoints call what our modules hold. Each family's table is beside its modules."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

# (regular expression of the beginning of a dotted path, replacement); the first that matches counts.
Table = tuple[tuple[str, str], ...]


class Dialect(NamedTuple):
    """Another writer's names of the same parameters, of the plain model.

    writer: who it is, in words.
    sign: an entry that is in all of its state_dicts and in no other's.
    table: regular expressions anywhere in a key of `TorchNames` -> what stands there in its own; all
        that match count, in order.
    """

    writer: str
    sign: str
    table: tuple[tuple[str, str | Callable[[re.Match], str]], ...]

    def key(self, key: str) -> str:
        """Its key of an entry."""
        for pattern, replacement in self.table:
            key = re.sub(pattern, replacement, key)
        return key


class TorchNames(NamedTuple):
    """Names of a backbone's parameters in PyTorch.

    modules: dotted paths inside our backbone -> inside PyTorch's.
    stem: key of the first layer's kernel, by which a backbone is found among other entries.
    head: path of the linear head of the plain model.
    query2label: path of the backbone inside a Query2Label.
    dialects: names by other writers, whose norms are plain ones.
    statistics: key of `normalise.NORMALISATIONS` by which published single-label weights want pixels
        standardised; empty: they take them in [0, 1].
    in_place_norms: norms were trained as InPlaceABN, which scales by |weight| + 1e-5.
    counts_batches: norms have an entry "num_batches_tracked", which nothing reads.
    derived: (all other entries by key, image size) -> entries that hold no weights but follow from
        the architecture, such as masks. They are not read; `to_torch` writes them.
    """

    modules: Table
    stem: str
    head: str
    query2label: str
    dialects: tuple[Dialect, ...] = ()
    statistics: str = "imagenet"
    in_place_norms: bool = False
    counts_batches: bool = False
    derived: Callable[[Mapping[str, Any], int], dict[str, np.ndarray]] | None = None


class HeadNames(NamedTuple):
    """Names of a head's parameters in PyTorch. A head has one branch for each of its logits.

    prefix: of the backbone's names -> path of the head.
    branch: of several branches, path below the head of each, before its number.
    bias: key below a branch whose last axis counts the classes.
    queries: key below a branch whose first axis counts the groups, or "" without groups.
    inner: paths inside a branch.
    trunk: paths of what all branches share.
    derived: as in `TorchNames`.
    """

    prefix: Callable[[TorchNames], str]
    branch: str
    bias: str
    queries: str = ""
    inner: Table = ()
    trunk: Table = ()
    derived: Callable[[Mapping[str, Any], int], dict[str, np.ndarray]] | None = None

    def table(self, attention: str, prefix: str) -> Table:
        """Paths inside our head -> in the state_dict."""
        branches = self.branches(attention, prefix)
        inner = (
            (rf"{name}\.{pattern}", f"{path}.{replacement}")
            for name, path in branches.items()
            for pattern, replacement in self.inner
        )
        return (*inner, *branches.items(), *self.trunk)

    def branches(self, attention: str, prefix: str) -> dict[str, str]:
        """Paths in the state_dict of the branches, by our names."""
        names = BRANCHES[attention]
        if len(names) == 1:
            return {names[0]: prefix}
        return {name: f"{prefix}.{self.branch}{i}" for i, name in enumerate(names, 1)}


# Logits of a head, by `attention`, in the reference's order: of the whole view; of the patches,
# both attention and score in one or each by itself.
BRANCHES = {"none": ("whole",), "self": ("whole", "patch"), "cross": ("whole", "attention", "score")}

# The last part of a path; what is not here has the same name and shape on both sides.
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
    # Statistics by truncation, and spectral norms: see `models.generators.biggan_deep`.
    "means": "running_means",
    "vars": "running_vars",
    "raw_kernel": "weight_orig",
    "u": "weight_u",
    "v": "weight_v",
}
_KERNELS = ("kernel", "raw_kernel")


def torch_key(path: tuple[str, ...], table: Table) -> str:
    """PyTorch's key of a variable of ours: its path's last part and then its beginning translated."""
    *modules, leaf = path
    name = ".".join((*modules, LEAVES.get(leaf, leaf)))
    for pattern, replacement in table:
        renamed, found = re.subn(rf"\A(?:{pattern})(?=\.|\Z)", replacement, name)
        if found:
            return renamed.removeprefix(".")  # a path that is empty on PyTorch's side
    return name


def to_torch_layout(leaf: str, array: Any) -> Any:
    """An array of ours with PyTorch's axes: kernels [h, w, c, d] -> [d, c, h, w] and [c, d] -> [d, c]."""
    if leaf not in _KERNELS:
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.transpose(1, 0)


def from_torch_layout(leaf: str, array: Any) -> Any:
    """The inverse of `to_torch_layout`."""
    if leaf not in _KERNELS:
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.transpose(1, 0)
