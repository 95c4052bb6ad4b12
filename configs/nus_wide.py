"""NUS-WIDE: PAT-T by the paper's recipe, trained on the official training list, scored on the test list.

    python -m cfmlc_jax.main --config=configs/nus_wide.py

Data: data/nus_wide, or $CFMLC_DATA/nus_wide, or --config.data.root=DIR; `python -m cfmlc_jax.data nus_wide`
shows the layout and checks it.

Reference score: the paper has none for NUS-WIDE. Expected time: an epoch is of 161,789 images, twice COCO's.
"""

from cfmlc_jax import config as configs


def get_config():
    config = configs.default()
    config.data.source = "nus_wide"
    return config
