"""What every head returns of a backbone's features.

What `attention` says is how many branches a head has: "none", one, for plain training; "self", a
second that is both attention and score of the patches; "cross", one for each.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from cfmlc_jax.models.torch_names import BRANCHES


class HeadOutput(NamedTuple):
    """Logits of every view.

    whole: [b, v, k] logits meant for the whole image.
    attention: [b, v, k] how much a patch resembles each class, or None.
    score: [b, v, k] a patch's evidence for each class, or None.
    counterfactual: [b, v, k] the mean feature's part of `whole`, or None.
    cosine: [b, v] of the features with the mean feature, or None.
    """

    whole: Any
    attention: Any = None
    score: Any = None
    counterfactual: Any = None
    cosine: Any = None


def by_branch(attention: str, logits_of: Callable):
    """`HeadOutput` from the logits [b, v, k] of each branch by its name."""
    logits = [logits_of(name) for name in BRANCHES[attention]]
    if attention == "none":
        return HeadOutput(logits[0])
    return HeadOutput(logits[0], logits[1], logits[-1])
