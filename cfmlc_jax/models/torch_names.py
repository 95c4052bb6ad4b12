"""Names of our parameters in PyTorch checkpoints. The table of each family is beside its modules."""

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np

# (regular expression for the beginning of a dotted path, replacement); the first match counts.
Table = tuple[tuple[str, str], ...]


class Dialect(NamedTuple):
    """Names that another library gives to the same parameters of the plain model.

    writer: name of the library.
    sign: an entry that all of its state_dicts have, and no others.
    table: regular expressions anywhere in a key of `TorchNames` -> replacements that give the library's key;
        all matches count, in order.
    normalisation: as `TorchNames.normalisation`, of the library's weights; None: the same.
    """

    writer: str
    sign: str
    table: tuple[tuple[str, str | Callable[[re.Match], str]], ...]
    normalisation: str | None = None

    def key(self, key: str) -> str:
        """The library's key for a key of `TorchNames`."""
        for pattern, replacement in self.table:
            key = re.sub(pattern, replacement, key)
        return key


class TorchNames(NamedTuple):
    """Names of a backbone's parameters in PyTorch.

    modules: dotted paths inside our backbone -> paths inside PyTorch's.
    stem: key of the first layer's kernel, which identifies the backbone among other entries.
    head: path of the linear head of the plain model.
    query2label: path of the backbone inside a Query2Label.
    dialects: names by other libraries, all with plain norms.
    normalisation: key of `normalise.NORMALISATIONS` by which published single-label weights expect pixels
        to be standardised; empty: they expect pixels in [0, 1].
    in_place_norms: norms were trained as InPlaceABN, which scales by |weight| + 1e-5.
    counts_batches: norms have an entry "num_batches_tracked", which is not read.
    derived: (all other entries by key, image size) -> entries without weights that follow from the
        architecture, such as masks. They are not read; `to_torch` writes them.
    unread: regular expression of entries of published backbones that this project has no use for; "": none. They are
        not read if the file has no head, which could depend on them.
    embeddings: (number of outputs, key of `normalise.NORMALISATIONS`) of published weights whose head projects images
        into a space that they share with texts.
    """

    modules: Table
    stem: str
    head: str
    query2label: str
    dialects: tuple[Dialect, ...] = ()
    normalisation: str = "imagenet"
    in_place_norms: bool = False
    counts_batches: bool = False
    derived: Callable[[Mapping[str, Any], int], dict[str, np.ndarray]] | None = None
    unread: str = ""
    embeddings: tuple[tuple[int, str], ...] = ()


class HeadNames(NamedTuple):
    """Names of a head's parameters in PyTorch. A head has one branch for each of its logits.

    prefix: the backbone's `TorchNames` -> path of the head.
    branch: name of a branch below the head, before its number, if there are several.
    bias: key below a branch of an array whose last axis counts the classes.
    queries: key below a branch of an array whose first axis counts the queries; empty for a head without them.
    inner: paths inside a branch.
    trunk: paths of the modules that all branches share.
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
        """Paths inside our head -> paths in the state_dict."""
        branches = self.branches(attention, prefix)
        inner = (
            (rf"{name}\.{pattern}", f"{path}.{replacement}")
            for name, path in branches.items()
            for pattern, replacement in self.inner
        )
        return (*inner, *branches.items(), *self.trunk)

    def branches(self, attention: str, prefix: str) -> dict[str, str]:
        """Our name of each branch -> its path in the state_dict."""
        names = BRANCHES[attention]
        if len(names) == 1:
            return {names[0]: prefix}
        return {name: f"{prefix}.{self.branch}{i}" for i, name in enumerate(names, 1)}


# Branches of a head by `attention`, in the reference's order: logits of the whole view; logits of patches,
# attention and score either in one branch or in one each.
BRANCHES = {"none": ("whole",), "self": ("whole", "patch"), "cross": ("whole", "attention", "score")}

# The last part of a path; leaves that are not listed have the same name and shape on both sides.
LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "embedding": "weight",
    "mean": "running_mean",
    "var": "running_var",
    # Statistics per truncation, and spectral norms (`models.generators.biggan_deep`).
    "means": "running_means",
    "vars": "running_vars",
    "raw_kernel": "weight_orig",
    "u": "weight_u",
    "v": "weight_v",
}
_KERNELS = ("kernel", "raw_kernel")


def torch_key(path: tuple[str, ...], table: Table) -> str:
    """PyTorch's key of one of our variables, from `LEAVES` for its last part and the table for its beginning."""
    *modules, leaf = path
    name = ".".join((*modules, LEAVES.get(leaf, leaf)))
    for pattern, replacement in table:
        renamed, substitutions = re.subn(rf"\A(?:{pattern})(?=\.|\Z)", replacement, name)
        if substitutions:
            return renamed.removeprefix(".")  # the path may be empty on PyTorch's side
    return name


def to_torch_layout(leaf: str, array: Any) -> Any:
    """One of our arrays with PyTorch's axes: kernels [h, w, c, d] -> [d, c, h, w] and [c, d] -> [d, c]."""
    if leaf not in _KERNELS:
        return array
    return array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.transpose(1, 0)


def from_torch_layout(leaf: str, array: Any) -> Any:
    """The inverse of `to_torch_layout`."""
    if leaf not in _KERNELS:
        return array
    return array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.transpose(1, 0)
