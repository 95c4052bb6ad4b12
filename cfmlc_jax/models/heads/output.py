"""The output of every head, and the branches that produce it.

`attention` decides how many branches a head has: "none", one branch, for plain training; "self", a
second branch that is both attention and score of the patches; "cross", one branch for attention and one for score.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from cfmlc_jax.models.torch_names import BRANCHES


class HeadOutput(NamedTuple):
    """Logits of every view.

    whole: [b, v, k] logits for use on whole images.
    attention: [b, v, k] how much a patch resembles each class, or None.
    score: [b, v, k] a patch's evidence for each class, or None.
    counterfactual: [b, v, k] the part of `whole` that lies along the mean feature, or None.
    cosine: [b, v] cosine between features and mean feature, or None.
    mechanisms: [b, v, k] logits of each mechanism by name, of which `whole` is the mean, or None.
    """

    whole: Any
    attention: Any = None
    score: Any = None
    counterfactual: Any = None
    cosine: Any = None
    mechanisms: Any = None


def by_branch(attention: str, branch_logits: Callable):
    """`HeadOutput` from a function that returns the logits [b, v, k] of a branch by its name."""
    logits = [branch_logits(name) for name in BRANCHES[attention]]
    if attention == "none":
        return HeadOutput(logits[0])
    return HeadOutput(logits[0], logits[1], logits[-1])
