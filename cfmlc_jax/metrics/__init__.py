"""Metrics of multi-label predictions, float64 numpy on the host."""

from cfmlc_jax.metrics.average_precision import AP_DEFINITIONS, average_precision, mean_average_precision
from cfmlc_jax.metrics.decisions import at_rate, top_k
from cfmlc_jax.metrics.thresholded import THRESHOLDS, precision_recall, thresholded

__all__ = [
    "AP_DEFINITIONS",
    "THRESHOLDS",
    "at_rate",
    "average_precision",
    "mean_average_precision",
    "precision_recall",
    "thresholded",
    "top_k",
]
