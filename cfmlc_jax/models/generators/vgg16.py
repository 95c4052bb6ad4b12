"""Features of VGG-16 for perceptual losses (Simonyan & Zisserman, ICLR 2015), and a small substitute."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cfmlc_jax.models.layers.convolution import Conv
from cfmlc_jax.models.layers.pooling import max_pool2
from cfmlc_jax.models.torch_names import Table

# Convolutions and features of each stage; between stages there is a 2×2 max pooling.
STAGES = ((2, 64), (2, 128), (3, 256), (3, 512))
# A network of the same form with a fiftieth of the work, for random weights.
SMALL_STAGES = ((1, 16), (1, 32), (1, 64), (1, 64))


class VGG16Features(nn.Module):
    """Maps after the first four stages: [b, h, w, 3] -> list of [b, h, w, 64], …, [b, h/8, w/8, 512].

    They are torchvision's layers 3, 8, 15 and 22, each the last before a pooling. Images are in
    [−1, 1], without ImageNet's normalisation, as in the reference. The rest of VGG-16 is omitted.

    Attributes:
        stages: (convolutions, features) of each stage; other stages than the default have no published weights.
        dtype: type of the computation.
    """

    stages: tuple[tuple[int, int], ...] = STAGES
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, images):
        x = images.astype(self.dtype)
        maps = []
        for stage, (convolutions, features) in enumerate(self.stages, 1):
            if stage > 1:
                x = max_pool2(x)
            for i in range(1, convolutions + 1):
                name = f"conv{stage}_{i}"
                x = jax.nn.relu(Conv(features, 3, dtype=self.dtype, use_bias=True, name=name)(x))
            maps.append(x)
        return maps

    def example(self) -> tuple:
        """Arguments for a batch of one image, to infer shapes."""
        return (jnp.zeros((1, 32, 32, 3)),)


TORCH: Table = (
    ("conv1_1", "features.0"),
    ("conv1_2", "features.2"),
    ("conv2_1", "features.5"),
    ("conv2_2", "features.7"),
    ("conv3_1", "features.10"),
    ("conv3_2", "features.12"),
    ("conv3_3", "features.14"),
    ("conv4_1", "features.17"),
    ("conv4_2", "features.19"),
    ("conv4_3", "features.21"),
)
# The stages of features by name. "random" stands for "vgg16" where its weights are not at hand: random features
# distinguish colours and edges too, without knowledge of objects.
FEATURES = {"vgg16": STAGES, "random": SMALL_STAGES}
# The rest of torchvision's file: the fifth stage and the classifier.
TORCH_UNUSED = r"features\.(24|26|28)\.|classifier\."
