"""Names to transforms, from a record to its views: one visible table."""

from collections.abc import Callable
from typing import Any, NamedTuple

from cfmlc_jax.causal.views import Grid
from cfmlc_jax.data.views.crops import AreaCrop, PaddedCrop
from cfmlc_jax.data.views.patches import ToViews, Transform


class Entry(NamedTuple):
    """A transform by name.

    create: (size, augment, exif, and the fields of the section of its name) -> the transform.
    cuts_patches: it also takes `grid` and `overlap`; others are for whole images alone.
    """

    create: Callable[..., Transform]
    cuts_patches: bool = False


TRANSFORMS = {
    "squeeze": Entry(ToViews, cuts_patches=True),
    "padded_crop": Entry(PaddedCrop),
    "area_crop": Entry(AreaCrop),
}


def create(
    views: Any, *, training: bool, exif: bool, grid: Grid | None = None, overlap: float = 0.0
) -> Transform:
    """The transform that config.views names.

    Args:
        views: section of a configuration: `image_size`, `transform`, and a section of options for each
            transform that has some.
        training: whether views are augmented, unless the options say otherwise.
        exif: turn pictures upright by their EXIF orientation.
        grid: of patches beside the whole view, for a transform that cuts them.
        overlap: of patches.
    """
    entry = TRANSFORMS[views.transform]
    options = {"augment": True} | dict(views.get(views.transform, {}))
    options["augment"] = options["augment"] and training
    patches = {"grid": grid, "overlap": overlap} if entry.cuts_patches else {}
    return entry.create(size=views.image_size, exif=exif, **patches, **options)
