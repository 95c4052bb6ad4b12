"""Pictures of where classes look: a frame only where there is a pivot."""

import numpy as np
import pytest
from PIL import Image

from cfmlc_jax.causal.views import patch_boxes
from cfmlc_jax.classify import examples
from cfmlc_jax.predict import overlay
from cfmlc_jax.results import pivots


def drawn(weights, grid=2):
    shown = overlay.ClassView("cat", 0.75, weights, 0.5)
    photo = examples.scaled(Image.new("RGB", (64, 64), (120, 90, 60)))
    picture = overlay.draw(photo, "a.jpg", ("", ""), [shown], patch_boxes(64, grid), 64)
    # The class's panel without its heading and its facts.
    left = overlay.MARGIN + examples.SIDE + overlay.GAP
    top = overlay.MARGIN + overlay.HEADER
    return np.asarray(picture.crop((left, top, left + examples.SIDE, top + examples.SIDE)))


def framed(weights, grid=2):
    """Pixels of the panel's photo that have the accent of frames."""
    return (drawn(weights, grid) == overlay.ACCENTS[0]).all(axis=-1).sum()


@pytest.mark.parametrize(
    ("weights", "grid"), [([0.26, 0.24, 0.24, 0.26], 2), ([0.37, 0.35, 0.14, 0.14], 2), ([0.12] * 8 + [0.04], 3)]
)  # fmt: skip
def test_near_uniform_attention_has_no_frame(weights, grid):
    assert pivots.pivot_of(weights) is None
    assert framed(weights, grid) == 0


def test_a_pivot_has_a_frame_around_its_patch():
    weights = [0.1, 0.2, 0.6, 0.1]
    assert pivots.pivot_of(weights) == 2
    assert framed(weights) > 1000
    # Patch 2 is the upper one of the right column: nothing of the colour to its left or below.
    half = examples.SIDE // 2
    colour = (drawn(weights) == overlay.ACCENTS[0]).all(axis=-1)
    assert not colour[half:].any()
    assert not colour[:, : half - 1].any()
