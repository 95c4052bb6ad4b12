"""Long-tailed digits from the embedded data: 1000 images of digit 0, ten of digit 9.

    scripts/run.sh --config=configs/longtail_digits.py                 De-confound, and De-confound-TDE
    scripts/run.sh --config=configs/longtail_digits.py:smoke           a minute, to see that all works
    scripts/run.sh --config=configs/longtail_digits.py:plain           or cosine, capsule, focal, weighted
    scripts/run.sh --config=configs/longtail_digits.py:tau             plain, its weights' lengths evened out
    scripts/run.sh --config=configs/longtail_digits.py:lws             after plain: scales of its weights

A small residual network trained from scratch; all variants have the same data and schedule. The
accuracies of three seeds are in docs/long_tails.md. "tau" trains what "plain" does; with
--mode=evaluate --checkpoint=runs/longtail_digits_plain it takes that.
"""

from cfmlc_jax.config import recipes


def get_config(variant: str = ""):
    smoke = variant == "smoke"
    config = recipes.long_tailed("" if smoke else variant, first_stage="runs/longtail_digits_plain")
    config.data.source = "long_tailed_digits"
    config.data.test_splits = ("test",)
    config.data.threads = 2
    config.views.image_size = 32
    config.views.transform = "padded_crop"
    config.views.padded_crop.flip = False
    config.model.name, config.model.dtype = "resnet_small", "float32"
    config.optim.learning_rate = 0.1
    config.optim.sgd.warmup_epochs = 3
    config.optim.sgd.milestones = (14, 18)
    config.optim.sgd.drop = 0.1
    config.train.batch_size = 64
    if variant != "lws":
        config.train.epochs = 20
    config.evaluate.batch_size = 200
    config.effect.alphas = (0.5, 1.0, 1.5)
    if smoke:
        config.data.longtail.largest = 400
        config.data.longtail.ratio = 0.02
        config.train.epochs = 4
        config.train.log_every = 10
        config.optim.sgd.warmup_epochs = 1
        config.optim.sgd.milestones = (4,)
    return config
