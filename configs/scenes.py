"""The embedded data: scenes composed of real handwritten digits on real photo textures.

    scripts/run.sh                                       (this file and :exchanged, compared)
    scripts/run.sh --config=configs/scenes.py            (PAT-T)
    scripts/run.sh --config=configs/scenes.py:smoke      (a minute, to see that all works)
    scripts/run.sh --config=configs/scenes.py:whole      (the baseline without patches)
    scripts/run.sh --config=configs/scenes.py:exclusive  (patches are cells of a map, one class each)
    scripts/run.sh --config=configs/scenes.py:exchanged  (… on decorrelated images whose classes are exchanged)
    scripts/run.sh --config=configs/scenes.py:photos     (objects cut out of photos; also photos_whole and so on)

A small residual network trained from scratch; the digits' partners are in nine of ten scenes at
training, and the three test splits tell how much the network leans on them. The variants cost about
the same to train: five epochs of PAT-T's five views, or 25 of one; :exchanged costs two fifths of that.
docs/evidence.md compares them.
"""

from cfmlc_jax import config as configs

VARIANTS = ("", "smoke", "whole", "asl", "exclusive", "exchanged")
PHOTOS = "photos"


def get_config(variant: str = ""):
    objects, _, method = variant.partition("_")
    if objects == PHOTOS:
        variant = method
    if variant not in VARIANTS:
        raise ValueError(
            f"configs/scenes.py has no variant {variant!r}; leave it out, or take one of {VARIANTS[1:]}, also after photos_"
        )
    config = configs.default()
    config.data.source = "photo_scenes" if objects == PHOTOS else "scenes"
    config.data.test_splits = ("test_iid", "test_balanced", "test_conflict")
    config.data.threads = 2
    config.views.image_size = 64
    config.views.squeeze.augment = False
    config.model.name, config.model.dtype = "resnet_small", "float32"
    # Three of ten classes are in a scene: not the imbalance that the paper's gamma_neg 4 is for.
    config.loss.gamma_neg = 1.0
    config.optim.learning_rate = 5e-3
    config.optim.ema_decay = 0.99
    config.train.batch_size = 16
    config.train.epochs = 5
    config.evaluate.batch_size = 200
    if variant == "smoke":
        config.data.scenes.num_train = 640
        config.data.scenes.num_test = 200
        config.train.epochs = 2
    elif variant in ("whole", "asl"):
        config.method = "whole"
        config.effect.kinds = ("whole",)
        config.train.epochs = 25
    elif variant in ("exclusive", "exchanged"):
        config.patches.source = "map"
        config.patches.map = "layer1"
        config.patches.pooling = "exclusive"
        config.patches.branches = "self"
        config.effect.kinds = ("whole",)
        config.train.epochs = 25
    if variant == "exchanged":
        _exchange(config)
    return config


def _exchange(config):
    """Decorrelated images, whose classes are removed or exchanged once the cells know them; the cells predict and teach."""
    config.data.decorrelate.effective_share = 0.25
    config.data.decorrelate.val_share = 0.1
    config.views.squeeze.shift = 1 / 16
    config.views.squeeze.gain = 0.25
    config.train.removal.rate = 0.8
    config.train.removal.exchange = 0.8
    config.train.removal.from_epoch = 6
    config.patches.weight = 1.0
    config.patches.distil = True
    config.train.epochs = 9
    config.train.early_stop = False
