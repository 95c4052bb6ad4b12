"""Long-tailed CIFAR-10 and CIFAR-100: the recipe of Tang et al. (NeurIPS 2020), ResNet-32 of BBN.

    python -m cfmlc_jax.main --config=configs/longtail_cifar.py                       CIFAR-100, De-confound-TDE
    python -m cfmlc_jax.main --config=configs/longtail_cifar.py:cifar10
    python -m cfmlc_jax.main --config=configs/longtail_cifar.py:cifar10,focal         and the other variants

Variants: deconfound, plain, cosine, capsule, focal, weighted, tau, lws (after plain). Imbalance 100;
--config.data.longtail.ratio=0.02 and 0.1 for 50 and 10.

Data: data/cifar100_lt (cifar10_lt), or $CFMLC_DATA/cifar100_lt, or --config.data.root=DIR, with the
official python or binary files; `python -m cfmlc_jax.data cifar100_lt` checks them.

Published top-1 accuracy (the reference's repository, mean of two runs), imbalance 100, 50, 10:

                      CIFAR-100            CIFAR-10
    Focal Loss        38.4  44.3  55.8     70.4  76.7  86.7
    De-confound       40.5  46.2  58.9     71.7  77.8  86.8
    De-confound-TDE   44.1  50.3  59.6     80.6  83.6  88.5

CIFAR has no validation split: "val" is the test split, as in the reference, so that the last weights
are evaluated and not the best ones.
"""

from cfmlc_jax.config import recipes

ALPHAS = {"cifar10": 1.0, "cifar100": 1.5}


def get_config(variant: str = ""):
    words = [word for word in variant.split(",") if word]
    named = [words.pop(0)] if words and words[0] in ALPHAS else []
    data_set = (*named, "cifar100")[0]
    plain = ",".join([*named, "plain"])
    config = recipes.long_tailed(",".join(words), first_stage=f"runs/longtail_cifar_{plain}")
    lws = config.model.head == "lws"
    config.data.source = f"{data_set}_lt"
    config.data.test_splits = ("test",)
    config.views.image_size = 32
    config.views.transform = "padded_crop"
    config.model.name = "resnet32_cifar"
    config.data.normalise = "cifar"
    config.train.batch_size = 512 if lws else 256
    if not lws:
        config.train.epochs = 200
    config.evaluate.checkpoint = "last"
    config.effect.alphas = (ALPHAS[data_set],)
    return config
