"""Metrics of multi-label predictions, float64 numpy on the host."""

from cfmlc_jax.metrics.average_precision import AP_DEFINITIONS, average_precision, mean_average_precision
from cfmlc_jax.metrics.thresholded import THRESHOLDS, thresholded

__all__ = ["AP_DEFINITIONS", "THRESHOLDS", "average_precision", "mean_average_precision", "thresholded"]
