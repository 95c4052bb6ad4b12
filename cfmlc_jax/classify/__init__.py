"""Classifiers: their system for the engine, and their evaluation and prediction.

Read `pat` and `deconfound`, the two published methods, then `patching` and `update`. `build` makes these
parts from a configuration; `train`, `evaluate` and `predictor` use them.
"""
