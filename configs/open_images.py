"""Open Images: PAT-T by the paper's recipe on image-level labels that people verified; the other labels are unknown.

    python -m cfmlc_jax.main --config=configs/open_images.py
    python -m cfmlc_jax.main --config=configs/open_images.py --config.data.unmentioned=absent    (assume negative)

Data: data/open_images, or $CFMLC_DATA/open_images, or --config.data.root=DIR;
`python -m cfmlc_jax.data open_images` shows the layout and checks it. A file classes.txt there chooses classes.

Reference score: the paper has none for Open Images. Expected time: depends on the part of the images; an image costs
what one of configs/coco.py costs.
"""

from cfmlc_jax import config as configs


def get_config():
    config = configs.default()
    config.data.source = "open_images"
    config.data.unmentioned = "unknown"
    return config
