"""The counterfactual generator for ImageNet: its training, and the counterfactuals that it draws."""
