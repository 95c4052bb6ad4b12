"""Optimisation: the one-cycle schedule, weight averaging, and how they are put together."""
