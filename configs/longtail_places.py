"""Places-LT: the recipe of Tang et al. (NeurIPS 2020), ResNeXt-50 from random weights.

    python -m cfmlc_jax.main --config=configs/longtail_places.py              De-confound, and De-confound-TDE
    python -m cfmlc_jax.main --config=configs/longtail_places.py:plain        and the other variants

Variants: deconfound, plain, cosine, capsule, focal, weighted, tau, lws (after plain).

Data: data/places_lt, or $CFMLC_DATA/places_lt, or --config.data.root=DIR, with Places_LT_{train,val,test}.txt
and the images that they name.

The reference's repository publishes no score for Places-LT.
"""

from cfmlc_jax.config import recipes


def get_config(variant: str = ""):
    return recipes.long_tailed_photos("places", variant)
