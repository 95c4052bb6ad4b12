"""The images of a batch: the name of their mapped axis, over which `models.classifier` maps its backbone; their devices.

The devices are those of the mesh for which a caller has the function traced (`engine.mesh.in_use`); without one there is
one device.
"""

import jax
from jax.sharding import PartitionSpec, get_abstract_mesh

IMAGES = "images"


def mapped_over_images() -> bool:
    """Whether the calling layer is being mapped over `IMAGES`."""
    try:
        # Not `axis_size`, which needs the size as a number: exported programs leave the batch free.
        jax.lax.axis_index(IMAGES)
    except NameError:
        return False
    return True


def devices_of_images() -> int:
    """The number of devices over which the images of a batch are split."""
    mesh = get_abstract_mesh()
    return 1 if mesh.empty else mesh.size


def on_all_devices(array):
    """The array with a full copy on every device."""
    return array if get_abstract_mesh().empty else jax.lax.with_sharding_constraint(array, PartitionSpec())
