"""The strength of the effect against the mean feature that the reference advises, from a split's cosines."""

import numpy as np

from cfmlc_jax.causal.mean_feature import rule_of_thumb_alpha


def rule_of_thumb(cosines) -> dict[str, float]:
    """{"mean_cosine", "alpha"}: cosines [n] of features with the mean feature -> the alpha for alpha·cos of 1.

    The alpha is NaN where the mean cosine is not positive, so that none does it
    (`mean_feature.rule_of_thumb_alpha`).
    """
    mean = float(np.asarray(cosines, np.float64).mean())
    return {"mean_cosine": mean, "alpha": rule_of_thumb_alpha(cosines) if mean > 0 else float("nan")}
