"""The alpha that the reference advises for the effect of the mean feature, from the cosines of a split."""

import numpy as np

from cfmlc_jax.causal.mean_feature import rule_of_thumb_alpha


def rule_of_thumb(cosines) -> dict[str, float]:
    """{"mean_cosine", "alpha"} from cosines [n] between features and mean feature.

    The alpha makes alpha·cos equal 1 on average (`mean_feature.rule_of_thumb_alpha`); it is NaN if the mean
    cosine is not positive.
    """
    mean = float(np.asarray(cosines, np.float64).mean())
    return {"mean_cosine": mean, "alpha": rule_of_thumb_alpha(cosines) if mean > 0 else float("nan")}
