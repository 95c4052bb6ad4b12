"""The strength of a total direct effect, chosen on a biased validation split without knowing the bias of a test.

Validation images have the co-occurrence of training: there context helps, and every effect that removes it loses. Their
weights make labels as independent as the images allow (`causal.decorrelation`); a ranking of the weighted images gains
nothing from context, and the strength with the best mean average precision of it is taken.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cfmlc_jax.causal.decorrelation import Decorrelation, decorrelate
from cfmlc_jax.metrics import mean_average_precision
from cfmlc_jax.results.scores import Scores


@dataclass(frozen=True)
class Strength:
    """The chosen strength, and what it was chosen by.

    alpha: the chosen strength; the smallest of several equals.
    alphas: the strengths that were compared, with 0, the combined prediction.
    biased: mAP in percent ("sklearn") of the validation images, by strength.
    weighted: mAP of the weighted images, likewise.
    decorrelation: the weights.
    """

    alpha: float
    alphas: tuple[float, ...]
    biased: tuple[float, ...]
    weighted: tuple[float, ...]
    decorrelation: Decorrelation


def choose(scores: Scores, counterfactual: str, alphas: Sequence[float], effective_share: float) -> Strength:
    """The strength with which a counterfactual is subtracted best.

    Args:
        scores: of the validation split, with this counterfactual.
        counterfactual: its kind.
        alphas: the strengths to compare; 0 is always among them.
        effective_share: of the weights, as in `causal.decorrelation.decorrelate`.

    Raises:
        InputError: a share outside (0, 1].
    """
    compared = tuple(sorted({0.0, *alphas}))
    decorrelation = decorrelate(scores.labels, effective_share)
    predicted = [scores.effect(counterfactual, alpha) for alpha in compared]

    def measured(weights):
        return tuple(mean_average_precision(each, scores.labels, "sklearn", weights) for each in predicted)

    weighted = measured(decorrelation.weights)
    return Strength(compared[int(np.argmax(weighted))], compared, measured(None), weighted, decorrelation)
