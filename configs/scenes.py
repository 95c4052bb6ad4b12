"""The embedded data: scenes composed of real handwritten digits on real photo textures.

    scripts/run.sh                                     (this file)
    scripts/run.sh --config=configs/scenes.py:smoke    (a minute, to see that all works)

A small residual network trained from scratch with PAT-T; the digits' partners are in nine of ten
scenes at training, and the three test splits tell how much the network leans on them.
"""

from cfmlc_jax import config as configs


def get_config(variant: str = ""):
    if variant not in ("", "smoke"):
        raise ValueError(f"configs/scenes.py has no variant {variant!r}; leave it out, or take 'smoke'")
    config = configs.default()
    config.data.source = "scenes"
    config.data.val_split = "val"
    config.data.test_splits = ("test_iid", "test_balanced", "test_conflict")
    config.views.image_size = 64
    config.views.augment = False
    config.model.name = "resnet_small"
    config.optim.learning_rate = 3e-3
    config.optim.ema_decay = 0.98
    config.train.batch_size = 64
    config.train.epochs = 8
    config.train.log_every = 20
    config.evaluate.batch_size = 200
    if variant == "smoke":
        config.data.scenes.num_train = 640
        config.data.scenes.num_test = 200
        config.train.epochs = 2
    return config
