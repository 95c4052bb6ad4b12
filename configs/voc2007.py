"""PASCAL VOC 2007: PAT-T by the paper's recipe, trained on trainval, scored on test.

    python -m cfmlc_jax.main --config=configs/voc2007.py

Data: data/voc2007, or $CFMLC_DATA/voc2007, or --config.data.root=DIR, with VOCdevkit/VOC2007/;
`python -m cfmlc_jax.data voc2007` checks it.

Reference score: the reference's repository publishes none for VOC 2007; the paper's is for
pre-trained weights.

Expected time: 80 epochs are 3,120 steps of 128 images × 5 views, 3.6e17 floating-point operations:
1.3 hours on four GPUs that sustain 20 TFLOP/s each (arithmetic, not a measurement).
"""

from cfmlc_jax import config as configs


def get_config():
    config = configs.default()
    config.data.source = "voc2007"
    return config
