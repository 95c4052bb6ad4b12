"""Counterfactual generative networks (Sauer & Geiger, ICLR 2021): training, counterfactual images, evaluation."""
