"""A counterfactual generative network on the objects of the embedded scenes, and the multi-label scenes that it composes.

    scripts/run.sh --config=configs/cgn_scenes.py                     trains, and writes runs/cgn_scenes/counterfactuals
    scripts/run.sh --config=configs/cgn_scenes.py:smoke               a minute, to see that all works
    python -m cfmlc_jax.cgn generate --checkpoint=runs/cgn_scenes --records=30000 --seed=1 --out=scenes        more of them

The network learns from crops of the objects of the biased training scenes. Composites are real training scenes from
which objects are removed and to which generated ones are added, such that each class is independent of the others.
A classifier is trained on them beside the real scenes:

    scripts/run.sh --config=configs/scenes.py:whole --config.data.counterfactuals.path=runs/cgn_scenes/counterfactuals

docs/generators.md has the details, docs/evidence.md what it brings.
"""

from cfmlc_jax import config as configs


def get_config(variant: str = ""):
    if variant not in ("", "smoke"):
        raise ValueError(f"configs/cgn_scenes.py has no variant {variant!r}; leave it out, or take 'smoke'")
    config = configs.default("cgn")
    config.data.source = "scene_objects"
    config.generator.latent = 16
    config.generator.ngf = 16
    # Colours do not follow the class here, so that the critic must compare shape and label.
    config.critic.name = "projection"
    config.loss.style = (0.0, 0.0, 0.0, 0.0)
    config.loss.sides = 1.0  # objects stand inside their crops
    config.optim.learning_rate = 5e-4
    config.optim.ema_decay = 0.999
    config.train.epochs = 3
    config.counterfactuals.num_records = 6_000
    config.counterfactuals.shard_size = 1_000
    config.classifiers.names = ()
    if variant == "smoke":
        config.data.scenes.num_train = 640
        config.generator.ngf = 8
        config.critic.ndf = 64
        config.optim.ema_decay = 0.98
        config.train.epochs = 4
        config.counterfactuals.num_records = 640
        config.counterfactuals.shard_size = 320
    return config
