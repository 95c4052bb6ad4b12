"""MS-COCO 2014: PAT-T by the paper's recipe (arXiv:2404.06287; MLC-PAT's run_PAT-T).

    python -m cfmlc_jax.main --config=configs/coco.py

Data: data/coco, or $CFMLC_DATA/coco, or --config.data.root=DIR, with train2014/, val2014/ and
annotations/instances_{train,val}2014.json; `python -m cfmlc_jax.data coco` checks it.

Reference score: 85.1 mAP, ResNet-101 pre-trained on ImageNet-1k. This file starts from random
weights, for which no score is published.

Expected time: 80 epochs are 51,280 steps of 128 images × 5 views, 6.0e18 floating-point
operations: 21 hours on four GPUs that sustain 20 TFLOP/s each (arithmetic, not a measurement).
"""

from cfmlc_jax import config as configs


def get_config():
    # The schema's defaults are this recipe.
    return configs.default()
