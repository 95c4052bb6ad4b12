"""The class branch of a detector on LVIS, from region features that the detector stored (docs/long_tails.md, LVIS).

    python -m cfmlc_jax.main --config=configs/longtail_lvis.py --config.data.train=regions/train --config.data.val=regions/val --config.data.annotations=lvis_v1_val.json
    python -m cfmlc_jax.main --config=configs/longtail_lvis.py:plain --config.data.train=regions/train --config.data.val=regions/val --config.data.annotations=lvis_v1_val.json
    python -m scripts.longtail_regions_table                     the same on embedded scenes, minutes

Published by Tang et al. (NeurIPS 2020, Table 4) for a whole detector, a three-stage Cascade Mask R-CNN with ResNet-101-FPN that is
trained as a hybrid task cascade for 20 epochs: on LVIS v1 val AP 27.1 for De-confound-TDE (rare 16.0, common 26.9, frequent
32.1; of boxes 30.0), 23.5 for De-confound (5.2, 22.7, 32.3; boxes 25.8), 21.8 for the baseline (1.1, 20.9, 31.9; boxes
23.9). AP is of masks, which are not scored here. On v0.5 val 28.4 for De-confound-TDE (22.1, 29.0, 30.3; boxes 31.0),
22.6 for the baseline. These numbers were not reproduced here: they need LVIS and a trained detector.

A variant after the colon: "plain" has a linear classifier, "cosine" and "capsule" other norms; "v05" is LVIS v0.5; "scenes", also
with one of the others as in "scenes_plain", is the embedded data of scripts/longtail_regions_table.py.
"""

from cfmlc_jax import config as configs

CLASSIFIERS = {"plain": "linear", "cosine": "cosine", "capsule": "capsule", "deconfound": "causal"}


def get_config(variant: str = ""):
    words = set(variant.split("_")) - {""}
    unknown = words - CLASSIFIERS.keys() - {"v05", "scenes"}
    if unknown or len(words & CLASSIFIERS.keys()) > 1:
        raise ValueError(
            f"configs/longtail_lvis.py has no variant {variant!r}; join at most one of {', '.join(CLASSIFIERS)} to v05 or "
            "scenes by _"
        )
    config = configs.default("regions")
    # A validation of 19,809 images takes a core a quarter of an hour or more; the reference has none during training.
    config.evaluate.every = config.train.epochs
    for word in words & CLASSIFIERS.keys():
        config.model.classifier = CLASSIFIERS[word]
    if "v05" in words:
        config.data.version = "v0.5"
    if "scenes" in words:
        config.data.version = "own"
        config.data.threads = 2
        config.model.features = (4, 4, 96)
        config.model.stages = 1
        config.loss.stages = (1.0,)
        config.model.shared_layers = 2
        config.model.hidden = 128
        # An epoch has 41 steps, not 6,261: the mean feature forgets faster, as with the reference's rule for other data.
        config.model.momentum = 0.9
        config.optim.learning_rate = 0.05
        config.optim.sgd.warmup_epochs = 2
        config.optim.sgd.milestones = (16, 20)
        config.train.batch_size = 16
        config.train.regions = 24
        config.train.foreground = 0.5
        config.train.epochs = 22
        config.train.log_every = 20
        config.evaluate.batch_size = 2048
        config.evaluate.every = 11
        config.evaluate.most = 100
        config.effect.alphas = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
    return config
