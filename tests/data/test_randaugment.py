import hashlib
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfmlc_jax.data.views import randaugment
from cfmlc_jax.data.views.randaugment import LEVELS, MAGNITUDES, OPS, Draw

GOLDEN = Path(__file__).parents[1] / "golden" / "transforms"
EXPECTED = json.loads((GOLDEN / "expected.json").read_text())


@pytest.fixture(scope="module")
def whole():
    size = (EXPECTED["size"],) * 2
    with Image.open(GOLDEN / "source.png") as image:
        return image.convert("RGB").resize(size, Image.Resampling.BILINEAR)


def digest(view):
    return hashlib.sha256(view.tobytes()).hexdigest()


def draw_of(case, view):
    """The golden draws in our terms: pixel (x, y) is the middle of its stretch of the unit square."""
    x, y = case.get("xy") or EXPECTED["cutout_operation_xy"]
    return Draw(sign=case["sign"] or 1, x=(x + 0.5) / view.width, y=(y + 0.5) / view.height)


def name_of(case):
    return f"{case['name']}-{case['level']}{ {1: '+', -1: '-'}.get(case['sign'], '') }"


@pytest.mark.parametrize("case", EXPECTED["operations"], ids=name_of)
def test_operation_is_the_references_bit_for_bit(case, whole):
    assert MAGNITUDES.get(case["name"], np.zeros(10))[case["level"]] == pytest.approx(
        case["magnitude"], rel=1e-15
    )
    before = digest(whole)
    assert (
        digest(randaugment.apply(whole, case["name"], case["level"], draw_of(case, whole))) == case["sha256"]
    )
    assert digest(whole) == before


def test_golden_covers_every_operation_level_and_sign():
    seen = {(case["name"], case["level"], case["sign"]) for case in EXPECTED["operations"]}
    signed = {"Sharpness", "ShearX", "ShearY", "TranslateX", "TranslateY", "Contrast", "Color", "Brightness"}
    assert seen == {
        (name, level, sign)
        for name in OPS
        for level in (1, 5, 9)
        for sign in ((1, -1) if name in signed else (None,))
    }


@pytest.mark.parametrize("name", ["ShearX_5n", "Rotate_5"])
def test_full_golden_images_match_too(name, whole):
    op, level = name.split("_")
    sign = -1 if level.endswith("n") else 1
    with Image.open(GOLDEN / f"ra_{name}.png") as image:
        np.testing.assert_array_equal(
            np.asarray(randaugment.apply(whole, op, int(level.rstrip("n")), Draw(sign=sign))),
            np.asarray(image),
        )


@pytest.mark.parametrize("call", EXPECTED["calls"], ids=lambda call: str(call["seed"]))
def test_complete_calls(call, whole, monkeypatch):
    steps = tuple(
        randaugment.Step(step["name"], step["level"], draw_of(step, whole), step["applied"])
        for step in call["steps"]
    )
    monkeypatch.setattr(randaugment, "sample", lambda generator: steps)
    assert digest(randaugment.augment(whole, np.random.default_rng(0))) == call["sha256"]


@pytest.mark.parametrize(
    ("x", "y", "painted"), [(0, 0, 100), (0.999, 0.999, 121), (0.5, 0.5, 400), (0.5, 0, 200)]
)
def test_cutout_covers_its_square_less_what_lies_outside(x, y, painted):
    # Level 9 is 20 pixels; around pixel (0, 0) a quarter is left, around (111, 111) 11 x 11.
    view = Image.new("RGB", (112, 112))
    out = np.asarray(randaugment.apply(view, "Cutout", 9, Draw(x=x, y=y)))
    assert (out == (125, 122, 113)).all(axis=2).sum() == painted
    assert out.any(axis=2).sum() == painted


def test_translation_moves_right_way_and_fills_grey():
    view = Image.new("RGB", (331, 10), (9, 9, 9))
    out = np.asarray(randaugment.apply(view, "TranslateX", 9, Draw(sign=1)))
    assert (out[:, -150:] == 128).all()
    assert (out[:, :-150] == 9).all()
    np.testing.assert_array_equal(
        out[:, ::-1], np.asarray(randaugment.apply(view, "TranslateX", 9, Draw(sign=-1)))
    )


def test_unknown_names_and_levels_are_refused(whole):
    with pytest.raises(ValueError, match="no operation 'Flip'; there are Invert, "):
        randaugment.apply(whole, "Flip", 1, Draw())
    with pytest.raises(ValueError, match="level 10 of Invert is outside 1 to 9"):
        randaugment.apply(whole, "Invert", 10, Draw())
    with pytest.raises(ValueError, match="level 0 of"):
        randaugment.apply(whole, "Rotate", 0, Draw())


def test_sample_is_uniform_over_operations_levels_signs_and_coins():
    generator = np.random.default_rng(5)
    n = 9000
    steps = [step for _ in range(n // 2) for step in randaugment.sample(generator)]
    counts = Counter((step.name, step.level) for step in steps)
    assert set(counts) == {(name, level) for name in OPS for level in LEVELS}
    expected = n / (15 * 9)
    # Chi-squared with 134 degrees of freedom: mean 134, standard deviation 16.4.
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 134 + 5 * 16.4
    half = n**0.5 / 2  # one standard deviation of a fair coin
    assert abs(sum(step.applied for step in steps) - n / 2) < 5 * half
    assert abs(sum(step.draw.sign == 1 for step in steps) - n / 2) < 5 * half
    xy = np.array([(step.draw.x, step.draw.y) for step in steps])
    assert (xy >= 0).all()
    assert (xy < 1).all()
    np.testing.assert_allclose(xy.mean(axis=0), 0.5, atol=5 * (1 / 12 / n) ** 0.5)


def test_the_two_steps_of_a_pair_are_independent():
    generator = np.random.default_rng(6)
    pairs = [randaugment.sample(generator) for _ in range(4000)]
    same = sum(first.name == second.name for first, second in pairs)
    assert abs(same - 4000 / 15) < 5 * (4000 / 15 * 14 / 15) ** 0.5
    both = Counter((first.applied, second.applied) for first, second in pairs)
    assert all(abs(count - 1000) < 5 * 750**0.5 for count in both.values())
    assert len(both) == 4


def test_same_generator_same_view(whole):
    first = [digest(randaugment.augment(whole, np.random.default_rng(seed))) for seed in range(8)]
    again = [digest(randaugment.augment(whole, np.random.default_rng(seed))) for seed in range(8)]
    assert first == again
    assert len(set(first)) > 3


def test_chance_taken_does_not_depend_on_what_comes_out(whole):
    for seed in range(6):
        used, counted = np.random.default_rng(seed), np.random.default_rng(seed)
        randaugment.augment(whole, used)
        counted.random(12)
        assert used.random() == counted.random()
