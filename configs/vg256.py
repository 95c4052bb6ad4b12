"""Visual Genome, 256 categories: PAT-T by the paper's recipe.

    python -m cfmlc_jax.main --config=configs/vg256.py

Data: data/vg256, or $CFMLC_DATA/vg256, or --config.data.root=DIR, with objects.json (v1.2), VG_100K/,
VG_100K_2/ and the vocabulary vg256.json of the reference's repository (or
--config.data.vocabulary=FILE); `python -m cfmlc_jax.data vg256` checks it.

Reference score: the reference's repository publishes none for VG-256; the paper's is for
pre-trained weights.

Expected time: 80 epochs of 75,653 images are 47,280 steps of 128 images × 5 views, 5.5e18
floating-point operations: 19 hours on four GPUs that sustain 20 TFLOP/s each (arithmetic, not a
measurement).
"""

from cfmlc_jax import config as configs


def get_config():
    config = configs.default()
    config.data.source = "vg256"
    return config
