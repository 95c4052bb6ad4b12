"""Searches the change of a configuration that fits into a given memory, with few compilations."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

# A fit is good enough if it leaves no larger share of the memory unused, or no candidate is between it and one that is
# too large.
SLACK = 0.1
# Steps along a line; after them the search halves the rest.
_STEPS = 2


class Candidate(NamedTuple):
    """A change of a configuration.

    fields: dotted name -> value.
    images: how many images of a batch are in memory at once; memory grows with them almost linearly.
    """

    fields: dict[str, Any]
    images: int


class Point(NamedTuple):
    """A number of images, and the bytes that it needs on each device."""

    images: int
    need: int


def largest(
    candidates: Sequence[Candidate],
    need: Callable[[Candidate], int],
    limit: int,
    too_large: Point | None = None,
) -> tuple[Candidate, int] | None:
    """The candidate with the most images whose need is at most `limit`, and its need; None if none fits.

    It measures the smallest candidate, and then the one where the line between two measurements meets the limit.

    Args:
        candidates: at least one, by ascending number of images.
        need: compiles a candidate and returns its bytes on each device.
        limit: bytes of a device.
        too_large: a measurement above the limit; None: the largest candidate is measured too.
    """
    by_images = {each.images: each for each in candidates}
    fitting = Point(candidates[0].images, need(candidates[0]))
    if fitting.need > limit:
        return None
    if too_large is None and candidates[1:]:
        most = Point(candidates[-1].images, need(candidates[-1]))
        if most.need <= limit:
            fitting = most
        else:
            too_large = most
    steps = 0
    while too_large is not None:
        between = [images for images in by_images if fitting.images < images < too_large.images]
        slope = (too_large.need - fitting.need) / (too_large.images - fitting.images)
        expected = [images for images in between if fitting.need + slope * (images - fitting.images) <= limit]
        if not between or (not expected and fitting.need >= (1 - SLACK) * limit):
            break
        steps += 1
        along_line = expected and steps <= _STEPS
        images = expected[-1] if along_line else between[len(between) // 2]
        measured = Point(images, need(by_images[images]))
        if measured.need <= limit:
            fitting = measured
        else:
            too_large = measured
    return by_images[fitting.images], fitting.need
