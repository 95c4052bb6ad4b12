"""Optimisers, learning-rate schedules, weight averaging and frozen parameters."""
