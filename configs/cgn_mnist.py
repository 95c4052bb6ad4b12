"""Counterfactual generative networks of MNIST's digits: the three published configurations (Sauer & Geiger, ICLR 2021).

    python -m cfmlc_jax.data mnist              # which files belong into data/mnist
    python -m cfmlc_jax.main --config=configs/cgn_mnist.py --workdir=runs/cgn_mnist                    double_colored
    python -m cfmlc_jax.main --config=configs/cgn_mnist.py:colored --workdir=runs/cgn_mnist_colored
    python -m cfmlc_jax.main --config=configs/cgn_mnist.py:wildlife --workdir=runs/cgn_mnist_wildlife

Also needed: torchvision's VGG-16, https://download.pytorch.org/models/vgg16-397923af.pth, in pretrained/ (PyTorch
reads it: pip install 'cfmlc_jax[torch]'), or elsewhere with --config.loss.features_from=FILE.

15 epochs of 3,125 steps with batches of 16; then 100,000 counterfactuals, ten of each shape, and the classifiers, 10
epochs each with batches of 64. No run has been made here: these are the scores to reach, published by the paper in
the first row, and measured from its checkpoints by a reproduction (Bagad et al., ML Reproducibility Challenge 2021) in
the others. Accuracy in percent on training images / on test images with independent mechanisms:

    classifier                                       colored       double_colored   wildlife
    real_and_counterfactual, the paper               99.7 / 95.1   97.4 / 89.0      99.2 / 85.7
    real_and_counterfactual                          99.2 / 95.9   96.9 / 85.5      96.8 / 62.8
    invariant, which the reference's code trains     99.4 / 92.3   94.8 / 86.5      95.5 / 81.4
    plain                                            99.7 / 37.6   100 / 10.5       100 / 10.8

What differs from the reference: uint8 images, so that the jitter of colours is clipped and rounded; ten thousand images
of the training file are kept from the training of "colored" too; counterfactuals draw their three labels
independently, instead of permuting those of a batch; the generator is never sampled in training mode in between, which
moves its batch statistics. "colored" draws its colours unless data/mnist has the reference's file of images.
"""

from cfmlc_jax.config import recipes


def get_config(variant: str = ""):
    config = recipes.cgn_digits(variant)
    config.data.source = f"{variant or 'double_colored'}_mnist"
    config.loss.features = "vgg16"
    config.loss.features_from = "pretrained/vgg16-397923af.pth"
    config.classifiers.names = ("plain", "invariant", "real_and_counterfactual")
    return config
