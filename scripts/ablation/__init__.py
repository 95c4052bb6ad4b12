"""Ablations: accuracy against measured cost, over trainings, seeds and uses of a checkpoint."""
