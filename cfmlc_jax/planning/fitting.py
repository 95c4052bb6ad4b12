"""Searches the change of a configuration that fits into a given memory, with few compilations."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple


class Candidate(NamedTuple):
    """A change of a configuration.

    fields: dotted name -> value.
    images: how many images of a batch are in memory at once; memory grows with them almost linearly.
    """

    fields: dict[str, Any]
    images: int


class Fit(NamedTuple):
    """A candidate that fits, and the bytes that it needs on each device."""

    candidate: Candidate
    need: int


def largest(
    candidates: Sequence[Candidate], need: Callable[[Candidate], int], limit: int, known: dict[int, int]
) -> Fit | None:
    """The candidate with the most images whose need is at most `limit`; None if not even the smallest fits.

    It measures the smallest candidate and a second one, draws the line through them, measures where the line meets the
    limit, and goes on from there until the next larger candidate is known or expected not to fit.

    Args:
        candidates: at least one, by ascending number of images.
        need: compiles a candidate and returns its bytes on each device.
        limit: bytes of a device.
        known: needs that were measured before, by number of images; it gets the new ones too.
    """
    by_images = {each.images: each for each in candidates}

    def measured(images):
        if images not in known:
            known[images] = need(by_images[images])
        return known[images]

    smallest = candidates[0].images
    if measured(smallest) > limit:
        return None
    while True:
        fitting = max(images for images in by_images if known.get(images, limit + 1) <= limit)
        # The line through the largest that fits, and the next one that was measured.
        others = [images for images in known if images != fitting]
        if not others:
            following = [images for images in by_images if images > fitting]
            if not following:
                break
            measured(following[0])
            continue
        near = min((images for images in others if images > fitting), default=max(others))
        slope = (known[near] - known[fitting]) / (near - fitting)
        expected = [
            images
            for images in by_images
            if images > fitting
            and images not in known
            and known[fitting] + slope * (images - fitting) <= limit
        ]
        if not expected:
            break
        measured(max(expected))
    return Fit(by_images[fitting], known[fitting])
