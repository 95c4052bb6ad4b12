"""PAT-T with Query2Label on TResNet-L (v2) from ImageNet-21k, as in the reference (MLC-PAT).

    python -m cfmlc_jax.main --config=configs/reference/q2l_tresnet_l_v2_in21k.py
    python -m cfmlc_jax.main --config=configs/reference/q2l_tresnet_l_v2_in21k.py:voc2007  (or vg256)
    python -m cfmlc_jax.main --config=configs/reference/q2l_tresnet_l_v2_in21k.py:coco,whole  (the baseline)

Weights: MIIL's TResNet-L (v2) of ImageNet-21k, converted to the folder that init_from names; the
backbone is taken, the head begins anew:

    python -m cfmlc_jax.torch_weights tresnet_l_v2_miil_21k.pth pretrained/tresnet_l_v2_in21k --model=tresnet_l_v2

Or --config.init_from=miil:tresnet_l_v2_miil_21k, which is downloaded and
converted (docs/weights.md).

Published score: 91.0 mAP on COCO 2014. The repository of the reference states none for VOC 2007 and
VG-256, nor for the baseline.

As in the reference, batch statistics are those of all 128 images, synchronised over its four GPUs,
and all epochs have the same order (the baseline: all images of one GPU, and another order each
epoch). The reference computes in float16 with a scaled loss, this file in bfloat16 on GPUs and TPUs.
Data: see configs/coco.py, voc2007.py and vg256.py.
"""

from cfmlc_jax.config import recipes


def get_config(variant: str = ""):
    config = recipes.mlc_pat(variant, synchronised_norms=True)
    config.model.name = "q2l_tresnet_l_v2"
    config.init_from = "pretrained/tresnet_l_v2_in21k"
    return config
