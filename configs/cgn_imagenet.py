"""A counterfactual generator for ImageNet, by the recipe of Sauer and Geiger (ICLR 2021, section 3).

    python -m cfmlc_jax.main --config=configs/cgn_imagenet.py --config.weights.biggan=FILE --config.weights.u2net=FILE --config.weights.vgg16=FILE
    scripts/run.sh --config=configs/cgn_imagenet.py:tiny              a minute, to see that all works

There is no data set: images are drawn by a BigGAN, whose weights the first command takes from files (docs/generators.md
says where they are), and so do classes and noise. A step is the sum of the gradients of 4,000 images; 300 steps are 1.2 million
images of 256 pixels. That was never run here: docs/generators.md says what was.

"tiny" has random weights, ten classes and images of 32 pixels. It shows the program; it draws no objects.
"""

from cfmlc_jax import config as configs


def get_config(variant: str = ""):
    config = configs.default("cgn_imagenet")
    if variant == "tiny":
        config.generator.size = "tiny_32"
        config.weights.random = True
        config.train.micro_batch = 4
        config.train.micro_batches = 2
        config.train.steps_per_epoch = 4
        config.train.epochs = 2
        config.train.checkpoint_every = 0
        config.evaluate.num_images = 16
        config.evaluate.batch_size = 8
        config.counterfactuals.num_records = 32
        config.counterfactuals.shard_size = 16
    return config
