"""Places-LT: the recipe of Tang et al. (NeurIPS 2020), ResNeXt-50 from random weights.

    python -m cfmlc_jax.main --config=configs/longtail_places.py              De-confound, and De-confound-TDE
    python -m cfmlc_jax.main --config=configs/longtail_places.py:plain        and the other variants

Variants: deconfound, plain, cosine, capsule, focal, weighted, tau, lws (after plain).

Data: data/places_lt, or $CFMLC_DATA/places_lt, or --config.data.root=DIR, with Places_LT_{train,val,test}.txt
and the images that they name.

The reference's repository publishes no score for Places-LT.
"""

from cfmlc_jax import recipes


def get_config(variant: str = ""):
    config = recipes.long_tailed(variant, first_stage="runs/longtail_places_plain")
    config.data.source = "places_lt"
    config.data.test_splits = ("test",)
    config.views.image_size = 224
    config.views.crop = "area"
    config.model.name = "resnext50_32x4d"
    config.model.statistics = "imagenet"
    config.model.cosine.mu_from_rate = True
    config.optim.schedule = "cosine"
    config.train.batch_size = 512
    if variant != "lws":
        config.train.epochs = 90
    config.effect.alphas = (3.0,)
    return config
