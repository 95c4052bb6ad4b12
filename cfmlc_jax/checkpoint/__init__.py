"""Checkpoints: what they hold, how they are kept, and how a part of one is read."""
