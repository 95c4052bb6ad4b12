"""ImageNet-LT: the recipe of Tang et al. (NeurIPS 2020), ResNeXt-50 from random weights.

    python -m cfmlc_jax.main --config=configs/longtail_imagenet.py              De-confound, and De-confound-TDE
    python -m cfmlc_jax.main --config=configs/longtail_imagenet.py:plain        and the other variants

Variants: deconfound, plain, cosine, capsule, focal, weighted, tau, lws (after plain).

Data: data/imagenet_lt, or $CFMLC_DATA/imagenet_lt, or --config.data.root=DIR, with ImageNet_LT_{train,val,test}.txt
and the images that they name.

Published top-1 accuracy of ResNeXt-50 (the reference's repository): many, medium, few, all:

    Baseline          66.1  38.4   8.9  45.0
    Focal Loss        64.3  37.1   8.2  43.7
    Cosine            67.3  41.3  14.0  47.6
    Capsule           67.1  40.0  11.2  46.5
    Decouple-tau-norm 59.1  46.9  30.7  49.4
    Decouple-LWS      60.2  47.2  30.3  49.9
    De-confound       67.9  42.7  14.7  48.6
    Cosine-TDE        61.8  47.1  30.4  50.5
    Capsule-TDE       62.3  46.9  30.6  50.6
    De-confound-TDE   62.7  48.8  31.6  51.8
"""

from cfmlc_jax.config import recipes


def get_config(variant: str = ""):
    return recipes.long_tailed_photos("imagenet", variant)
