"""The name of the mapped axis over the images of a batch; `models.classifier` maps its backbone over it."""

import jax

IMAGES = "images"


def mapped_over_images() -> bool:
    """Whether the calling layer is being mapped over `IMAGES`."""
    try:
        jax.lax.axis_size(IMAGES)
    except NameError:
        return False
    return True
