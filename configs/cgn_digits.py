"""A counterfactual generative network on embedded digits, and classifiers trained on what it draws.

    scripts/run.sh --config=configs/cgn_digits.py                     double-coloured digits
    scripts/run.sh --config=configs/cgn_digits.py:colored             coloured digits on black
    scripts/run.sh --config=configs/cgn_digits.py:wildlife            digits of photos' textures
    scripts/run.sh --config=configs/cgn_digits.py:smoke               a minute, to see that all works

Digits of each class have a colour of their own, and so have their backgrounds; in the test split all colours are
random. The run trains the network, generates counterfactuals, trains a plain and an invariant classifier, and ends
with a table. It differs from the reference's recipe (configs/cgn_mnist.py), which is for 50,000 images and
hours: no style loss, averaged weights, a new shape for each record; and for photos' textures the linear critic and the
initial weights of double colours, because the published convolutional critic soon tells so few images apart.
"""

from cfmlc_jax.config import recipes


def get_config(variant: str = ""):
    look = "double_colored" if variant in ("", "smoke") else variant
    config = recipes.cgn_digits("double_colored" if look == "wildlife" else look)
    config.data.source = f"{look}_digits"
    config.loss.style = (0.0, 0.0, 0.0, 0.0)
    config.optim.ema_decay = 0.999
    config.train.epochs = 14
    config.counterfactuals.num_records = 30_000
    config.counterfactuals.per_shape = 1
    config.classifiers.epochs = 5
    if variant == "smoke":
        config.generator.ngf = 8
        config.critic.ndf = 64
        config.optim.ema_decay = 0.98
        config.train.epochs = 1
        config.counterfactuals.num_records = 2_000
        config.counterfactuals.shard_size = 1_000
        config.classifiers.epochs = 1
    return config
