"""Agreement between estimated effects and true effects; both are changes of a logit."""

from dataclasses import dataclass

import numpy as np

from cfmlc_jax.metrics.bootstrap import Interval, interval


@dataclass(frozen=True)
class Agreement:
    """Agreement between estimated and true effects; all values but the correlations are in logits.

    effects: m, the number of effects.
    pearson, spearman: correlations with their intervals; NaN if either side is constant.
    slope: slope of the least-squares line of estimates over true effects. 1 is the right scale; less means that
        estimates are too small (or that the true effects are noisy). NaN for constant true effects.
    bias: mean of estimate − truth.
    mae, rmse: mean absolute and root mean square of estimate − truth.
    """

    effects: int
    pearson: Interval
    spearman: Interval
    slope: float
    bias: float
    mae: float
    rmse: float


def agreement(
    estimated,
    true,
    *,
    generator: np.random.Generator,
    images=None,
    resamples: int = 1000,
    level: float = 0.95,
) -> Agreement:
    """Correlation, scale and errors of estimated effects: two [m] -> `Agreement`.

    The intervals are bootstrap intervals over images. Effects of the same image share its noise, so they are
    drawn together.

    Args:
        estimated: estimated changes of logits.
        true: true changes of the same logits.
        generator: random generator of the bootstrap.
        images: [m], the image of each effect, as any number; None: every effect belongs to a different image.
        resamples: number of resamples.
        level: confidence level of the intervals.

    Raises:
        ValueError: unequal shapes, nothing to compare, a value that is not finite, or what
            `bootstrap.interval` refuses.
    """
    estimated, true = _finite(estimated, true)
    owners = _owners(images, estimated)

    def correlations(weights):
        drawn = weights[:, owners]
        ranks = _weighted_ranks(estimated, drawn), _weighted_ranks(true, drawn)
        return np.stack([_correlation(estimated, true, drawn), _correlation(*ranks, drawn)], axis=1)

    value, low, high = interval(
        correlations,
        int(owners.max()) + 1,
        generator=generator,
        resamples=resamples,
        level=level,
        bounds=(-1.0, 1.0),
    )
    error = estimated - true
    return Agreement(
        effects=len(error),
        pearson=Interval(value[0], low[0], high[0]),
        spearman=Interval(value[1], low[1], high[1]),
        slope=_slope(estimated, true),
        bias=float(error.mean()),
        mae=float(np.abs(error).mean()),
        rmse=float(np.sqrt((error**2).mean())),
    )


def _finite(estimated, true):
    estimated, true = np.asarray(estimated, np.float64), np.asarray(true, np.float64)
    if estimated.ndim != 1 or estimated.shape != true.shape:
        raise ValueError(f"estimated {estimated.shape} and true effects {true.shape} must both be [m]")
    if not estimated.size:
        raise ValueError("there are no effects to compare")
    for name, values in (("estimated", estimated), ("true", true)):
        if not np.isfinite(values).all():
            raise ValueError(f"{(~np.isfinite(values)).sum()} {name} effects are not finite")
    return estimated, true


def _owners(images, effects):
    """Image of each effect, numbered from 0 without gaps: int [m]."""
    images = np.arange(len(effects)) if images is None else np.asarray(images)
    if images.shape != effects.shape:
        raise ValueError(f"images {images.shape} must be [m], one for each of {len(effects)} effects")
    return np.unique(images, return_inverse=True)[1]


def _slope(estimated, true):
    if (true == true[0]).all():
        return float("nan")
    centred = true - true.mean()
    return float(centred @ estimated / (centred @ centred))


def _correlation(x, y, weights):
    """Pearson correlation in each resample: two [m] or [r, m], weights [r, m] -> [r]."""
    total = weights.sum(axis=1, keepdims=True)
    # Compared exactly, because a constant's deviations from its rounded mean would still correlate.
    constant = _constant(x, weights) | _constant(y, weights)
    x = x - (weights * x).sum(axis=1, keepdims=True) / total
    y = y - (weights * y).sum(axis=1, keepdims=True) / total
    scale = np.sqrt((weights * x**2).sum(axis=1)) * np.sqrt((weights * y**2).sum(axis=1))
    correlation = np.divide(
        (weights * x * y).sum(axis=1), scale, out=np.full(len(weights), np.nan), where=~constant
    )
    return np.clip(correlation, -1.0, 1.0)


def _constant(x, weights):
    drawn = weights > 0
    return np.where(drawn, x, np.inf).min(axis=1) == np.where(drawn, x, -np.inf).max(axis=1)


def _weighted_ranks(values, weights):
    """Mean rank, from 1, of each value in each resample: [m], [r, m] -> [r, m]."""
    order = np.argsort(values, kind="stable")
    _, place, ties = np.unique(values, return_inverse=True, return_counts=True)
    tied = np.add.reduceat(weights.take(order, axis=1), np.cumsum(ties) - ties, axis=1)
    return (np.cumsum(tied, axis=1) - (tied - 1) / 2)[:, place]
