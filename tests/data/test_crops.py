"""Crops, flips and colours of single-label training."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from cfmlc_jax.data.views import crops
from cfmlc_jax.data.views.crops import AreaCrop, PaddedCrop, jitter_colours, middle, random_box, random_flip
from cfmlc_jax.data.views.patches import ToViews
from cfmlc_jax.data.views.resample import to_square
from cfmlc_jax.errors import InputError


class Fixed:
    """A generator whose draws are given beforehand, in order."""

    def __init__(self, *draws):
        self._draws = list(draws)

    def _next(self, *_):
        return np.asarray(self._draws.pop(0))

    integers = uniform = permutation = random = _next


def record(rng, height=32, width=32):
    pixels = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    return {"image": pixels, "labels": np.array([0, 1], np.uint8), "id": "a", "where": "shelf/a.jpg"}


def test_padded_crop_leaves_images_unchanged_in_evaluation(rng):
    example = record(rng)
    views = PaddedCrop()(example)
    np.testing.assert_array_equal(views["views"], example["image"][None])
    assert views["views"].dtype == np.uint8
    assert views["labels"].dtype == np.float32
    assert views["labels"].tolist() == [0, 1]
    assert views["id"] == "a"


def test_a_padded_crop_by_hand(rng):
    """Corner (1, 6) of a picture with margins of 4: moved right by 3 and up by 2, the rest black; not mirrored."""
    example = record(rng)
    view = PaddedCrop(augment=True)(example, Fixed([1, 6], 0.9))["views"][0]
    np.testing.assert_array_equal(view[:30, 3:], example["image"][2:, :29])
    assert not view[30:].any()
    assert not view[:, :3].any()
    mirrored = PaddedCrop(augment=True)(example, Fixed([1, 6], 0.1))["views"][0]
    np.testing.assert_array_equal(mirrored, view[:, ::-1])


def test_without_flips_there_are_none(rng):
    example = record(rng)
    to_view, seen = PaddedCrop(augment=True, flip=False, padding=0), set()
    for seed in range(8):
        seen.add(to_view(example, np.random.default_rng(seed))["views"].tobytes())
    assert seen == {example["image"].tobytes()}


def test_padded_crop_reaches_all_corners(rng):
    """81 corners of margin 4, twice for flips: 400 draws see nearly all of them and nothing else."""
    example = record(rng)
    to_view = PaddedCrop(augment=True)
    seen = {to_view(example, np.random.default_rng(seed))["views"].tobytes() for seed in range(400)}
    assert 130 < len(seen) <= 162


def test_a_picture_of_another_size(rng):
    with pytest.raises(InputError, match=r"^shelf/a.jpg: 40 x 30 pixels, wanted 32 x 32; set config.views"):
        PaddedCrop()(record(rng, 30, 40))


@pytest.mark.parametrize("kind", [PaddedCrop, AreaCrop])
def test_every_transform_follows_the_contract(rng, kind):
    to_view = kind(size=32, augment=True)
    assert to_view.num_views == 1
    assert to_view.grid is None
    example = record(rng)
    first, again, other = (to_view(example, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first["views"].shape == (1, 32, 32, 3)
    np.testing.assert_array_equal(first["views"], again["views"])
    assert not np.array_equal(first["views"], other["views"])
    with pytest.raises(TypeError, match="augmentation needs a generator"):
        to_view(example)
    with pytest.raises(InputError, match=r"shelf/a\.jpg: the file is empty"):
        kind(size=32)(example | {"image": b""})


def test_the_middle_of_a_photo():
    """400 × 300, for 224 px: 341 × 256 (341.3 rounded down), then 224² from column 58 (58.5 to even) and row 16."""
    rows, columns = np.mgrid[:300, :400]
    image = Image.fromarray(
        np.stack([rows * 255 // 299, columns * 255 // 399, rows * 0], -1).astype(np.uint8)
    )
    scaled = image.resize((341, 256), Image.Resampling.BILINEAR)
    np.testing.assert_array_equal(middle(image, 224), np.asarray(scaled)[16:240, 58:282])
    tall = image.transpose(Image.Transpose.TRANSPOSE)
    np.testing.assert_array_equal(
        middle(tall, 224), np.asarray(tall.resize((256, 341), Image.Resampling.BILINEAR))[58:282, 16:240]
    )


@pytest.fixture
def resized(monkeypatch):
    """Pixels of every picture that a resize makes, the one between its two directions included."""
    pixels = []
    resize = Image.Image.resize

    def measured(image, size, *arguments, **options):
        between = size[0] * image.height if size[0] != image.width else 0
        pixels.append(max(between, size[0] * size[1]))
        return resize(image, size, *arguments, **options)

    monkeypatch.setattr(Image.Image, "resize", measured)
    return pixels


TRANSFORMS = {
    "whole": ToViews(448),
    "patches": ToViews(448, grid=(2, 3), overlap=0.2),
    "augmented_patches": ToViews(448, grid=2, augment=True),
    "area": AreaCrop(224),
    "augmented_area": AreaCrop(224, augment=True),
}


@pytest.mark.parametrize("size", [(65000, 2), (2, 65000), (1, 65000), (65000, 1), (1, 1), (3, 30)], ids=str)
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=list(TRANSFORMS))
def test_pictures_of_any_aspect(rng, resized, size, transform):
    """In memory of the order of the views' (four bytes a pixel), however thin and long they are."""
    views = transform(record(rng, size[1], size[0]), rng)["views"]
    assert views.shape == (transform.num_views, transform.size, transform.size, 3)
    assert max(resized) <= 2**24
    (view, *_) = transform.cut(Image.fromarray(record(rng, size[1], size[0])["image"]))
    assert view.size == (transform.size, transform.size)
    (small,) = PaddedCrop(32).cut(view)
    assert small.size == (32, 32)


def test_a_tower_is_resized_in_the_other_order(rng):
    """The same picture but for rounding twice: within two levels of any Pillow's own order."""
    tower = Image.fromarray(rng.integers(0, 256, (40_000, 3, 3), np.uint8))
    for filter in (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC):
        expected = np.asarray(tower.resize((448, 448), filter), np.int16)
        actual = np.asarray(to_square(tower, 448, filter), np.int16)
        assert np.abs(actual - expected).max() <= 2
        assert to_square(tower.crop((0, 0, 3, 37_000)), 448, filter) == tower.crop((0, 0, 3, 37_000)).resize((448, 448), filter)  # fmt: skip


@pytest.mark.parametrize(("long", "exact"), [(160, True), (161, False), (321, False)])
def test_the_middle_of_a_long_picture(long, exact):
    """Beyond 16 shorter sides its ends are cut first: the same place, to a pixel of the scaled picture."""
    columns = np.arange(long) * 255 // (long - 1)
    pixels = np.repeat(np.repeat(columns[None, :, None], 10, axis=0), 3, axis=2).astype(np.uint8)
    for image in (Image.fromarray(pixels), Image.fromarray(pixels).transpose(Image.Transpose.TRANSPOSE)):
        across = image.width == long
        side = int(256 * long / 10)
        scaled = image.resize((side, 256) if across else (256, side), Image.Resampling.BILINEAR)
        corner = (round((side - 224) / 2), 16) if across else (16, round((side - 224) / 2))
        expected = np.asarray(scaled.crop((*corner, corner[0] + 224, corner[1] + 224)), np.int16)
        difference = np.abs(np.asarray(middle(image, 224), np.int16) - expected)
        assert difference.max() <= (0 if exact else 1)


def test_a_random_box_by_hand():
    """Half of 200 × 100 with aspect 1: a square of 100 (√10,000), from the given corner."""
    assert random_box(200, 100, Fixed(0.5, 0.0, [30, 0])) == (30, 0, 130, 100)
    # The whole area with aspect 1 is 141 high: drawn again.
    assert random_box(200, 100, Fixed(1.0, 0.0, 0.5, 0.0, [7, 0])) == (7, 0, 107, 100)


@pytest.mark.parametrize(
    ("size", "box"),
    [((1000, 10), (493, 0, 506, 10)), ((10, 1000), (0, 493, 10, 506)), ((100, 90), (0, 0, 100, 90))],
)
def test_a_box_that_never_fits_is_the_middle(size, box):
    never = [draw for _ in range(10) for draw in (1.0, np.log(4 / 3) if size[0] < 500 else 0.0)]
    assert random_box(*size, Fixed(*never)) == box


def test_boxes_cover_the_areas_and_aspects(rng):
    """Of a square of 1000 px every box fits that is drawn, mostly."""
    boxes = np.array([random_box(1000, 1000, rng) for _ in range(2000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    areas, aspects = width * height / 1e6, width / height
    assert (boxes[:, :2] >= 0).all()
    assert (boxes[:, 2:] <= 1000).all()
    assert 0.08 < areas.min() + 0.001 < 0.09
    assert 0.95 < areas.max() <= 1
    assert 0.74 < aspects.min() < 0.76
    assert 1.32 < aspects.max() < 1.34
    # Log-uniform: as many above 1 as below; 2000 coins have a deviation of 22.
    assert abs((aspects > 1).sum() - 1000) < 100


def test_a_training_view_is_that_part_of_the_photo(rng):
    example = record(rng, 100, 200)
    generator = Fixed(0.5, 0.0, [30, 0], 0.9)
    view = AreaCrop(size=64, jitter=0.0, augment=True)(example, generator)["views"][0]
    part = Image.fromarray(example["image"][:, 30:130])
    np.testing.assert_array_equal(view, part.resize((64, 64), Image.Resampling.BILINEAR))


def test_colours_in_the_drawn_order(rng):
    image = Image.fromarray(record(rng)["image"])
    actual = jitter_colours(image, 0.4, Fixed([0.7, 1.3, 0.9], [2, 0, 1]))
    expected = ImageEnhance.Color(image).enhance(0.9)
    expected = ImageEnhance.Brightness(expected).enhance(0.7)
    expected = ImageEnhance.Contrast(expected).enhance(1.3)
    np.testing.assert_array_equal(actual, expected)
    assert jitter_colours(image, 0.0, Fixed()) is image


def test_factors_of_brightness_stay_in_their_range():
    """A grey picture keeps its colour and contrast, and its level tells the factor."""
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    levels = [
        np.asarray(jitter_colours(grey, 0.4, np.random.default_rng(seed)))[0, 0, 0] for seed in range(300)
    ]
    assert min(levels) in range(60, 64)
    assert max(levels) in range(137, 141)


def test_flips_have_probability_one_half(rng):
    image = Image.fromarray(record(rng)["image"])
    flipped = sum(random_flip(image, rng) is not image for _ in range(400))
    assert 150 < flipped < 250
    assert crops.AREAS == (0.08, 1.0)
