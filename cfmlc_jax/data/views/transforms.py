"""The table of transforms (from a record to its views) by name."""

from collections.abc import Callable
from typing import Any, NamedTuple

from cfmlc_jax.causal.views import Grid
from cfmlc_jax.data.views.crops import AreaCrop, PaddedCrop
from cfmlc_jax.data.views.patches import ToViews, Transform


class Entry(NamedTuple):
    """A transform by name.

    create: (size, augment, exif, and the fields of config.views's section of this name) -> the transform.
    cuts_patches: whether it also takes `grid` and `overlap`; other transforms give the whole view only.
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
    """The transform named by config.views.

    Args:
        views: section `views` of a configuration: `image_size`, `transform`, and a section of options for each
            transform that has options.
        training: whether views are augmented, unless the options disable it.
        exif: turn images upright by their EXIF orientation.
        grid: patches along one side, for a transform that cuts patches; None: no patches.
        overlap: overlap of patches.
    """
    entry = TRANSFORMS[views.transform]
    options: dict[str, Any] = {"augment": True} | dict(views.get(views.transform, {}))
    options["augment"] = options["augment"] and training
    if not training:
        options |= {name: 0.0 for name in ("shift", "gain") if name in options}
    patches = {"grid": grid, "overlap": overlap} if entry.cuts_patches else {}
    return entry.create(size=views.image_size, exif=exif, **patches, **options)
