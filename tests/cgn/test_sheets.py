"""Sheets: what is exchanged and what stays, and where each tile is in the picture."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cfmlc_jax.causal import mechanisms
from cfmlc_jax.cgn import sheets
from cfmlc_jax.cgn.system import draw, in_bytes
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.errors import WriteError
from cfmlc_jax.models.generators import mnist
from cfmlc_jax.results.mechanisms import SHEETS, epoch_of

GENERATOR = mnist.MnistGenerator(num_classes=4, latent=3, ngf=2)
NAMES = ["one", "two", "three", "four"]
K = len(NAMES)


@pytest.fixture(scope="module")
def variables():
    return GENERATOR.init(jax.random.key(0), *GENERATOR.example(), train=False)


@pytest.fixture(scope="module")
def artist():
    # Of one device: for eight it would compile eight times as long.
    grid = np.array(jax.devices()[:1]).reshape(1, 1)
    mesh = jax.sharding.Mesh(grid, (meshes.DATA, meshes.FSDP), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    return sheets.Artist(GENERATOR, mesh, NAMES)


@pytest.fixture(scope="module")
def drawn(artist, variables):
    return artist.sheets(variables, 5)


def made(count=K):
    """Masks, foregrounds and backgrounds of several images, by rule."""
    rng = np.random.default_rng(0)
    return {
        "shape": rng.random((count, 32, 32, 1)).astype(np.float32),
        "texture": rng.uniform(-1, 1, (count, 32, 32, 3)).astype(np.float32),
        "background": rng.uniform(-1, 1, (count, 32, 32, 3)).astype(np.float32),
    }


def composite(parts, shape, texture, background):
    mask = parts["shape"][shape]
    image = mask * parts["texture"][texture] + (1 - mask) * parts["background"][background]
    return np.asarray(in_bytes(image))


def assert_near(one, other):
    """Equal up to the rounding of a byte."""
    assert one.dtype == np.uint8
    assert np.abs(one.astype(int) - other.astype(int)).max() <= 1


def test_a_row_has_the_mechanisms_of_a_class_and_their_composites():
    parts = made()
    sheet = sheets.mechanism_sheet(parts, NAMES)
    assert sheet.tiles.shape == (K, 5, 32, 32, 3)
    for row in range(K):
        mask, texture, background, whole, exchanged = sheet.tiles[row]
        assert_near(mask, np.asarray(255 * parts["shape"][row]).repeat(3, axis=-1))
        assert_near(texture, in_bytes(parts["texture"][row]))
        assert_near(background, in_bytes(parts["background"][row]))
        assert_near(whole, composite(parts, row, row, row))
        # By thirds of four classes: the next, and the one after it.
        assert_near(exchanged, composite(parts, row, (row + 1) % K, (row + 2) % K))


@pytest.mark.parametrize(("exchanged", "fixed"), [("texture", "background"), ("background", "texture")])
def test_exchanged_mechanisms_keep_the_shape_along_a_row(exchanged, fixed):
    parts = made()
    sheet = sheets.exchange_sheet(parts, exchanged, NAMES)
    assert sheet.tiles.shape == (1 + K, 1 + K, 32, 32, 3)
    assert_near(sheet.tiles[0, 0], in_bytes(parts[fixed][0]))
    for i in range(K):
        assert_near(sheet.tiles[1 + i, 0], np.asarray(255 * parts["shape"][i]).repeat(3, axis=-1))
        assert_near(sheet.tiles[0, 1 + i], in_bytes(parts[exchanged][i]))
        for j in range(K):
            expected = composite(parts, **({"shape": i, exchanged: j, fixed: 0}))
            assert_near(sheet.tiles[1 + i, 1 + j], expected)


def test_one_mechanism_at_a_time_changes_in_a_row():
    parts = made(3)
    sheet = sheets.interpolation_sheet(parts, "From one to two", ("one", "two"))
    assert (list(sheet.rows), list(sheet.columns)) == (
        ["shape", "texture", "background", "all"],
        ["one", "", "two"],
    )
    for step in range(3):
        for name, row in zip(mechanisms.MECHANISMS, sheet.tiles):
            steps = dict.fromkeys(mechanisms.MECHANISMS, 0) | {name: step}
            assert_near(row[step], composite(parts, **steps))
        assert_near(sheet.tiles[3, step], composite(parts, step, step, step))


def test_composites_are_what_the_generator_draws(artist, variables, drawn):
    key = jax.random.split(jax.random.key(5), 3)[0]
    draws = draw(key, K, GENERATOR)
    labels = mechanisms.same_for_all(jnp.arange(K))
    composed = GENERATOR.apply(
        variables, labels, mechanisms.same_for_all(draws.noise), draws.offsets, train=False
    )
    assert_near(drawn["mechanisms"].tiles[:, 3], in_bytes(composed.image))
    noise = {name: draws.noise for name in mechanisms.MECHANISMS}
    noise["texture"] = jnp.roll(draws.noise, -2, axis=0)
    labels["texture"] = jnp.roll(jnp.arange(K), -2)
    offsets = draws.offsets | {"texture": jnp.roll(draws.offsets["texture"], -2, axis=0)}
    exchanged = GENERATOR.apply(variables, labels, noise, offsets, train=False)
    assert_near(drawn["exchanged_texture"].tiles[1, 3], in_bytes(exchanged.image)[0])


def test_sheets_are_those_of_their_seed(artist, variables, drawn):
    assert tuple(drawn) == SHEETS
    again, other = artist.sheets(variables, 5), artist.sheets(variables, 6)
    for name, sheet in drawn.items():
        assert sheet.tiles.shape[:2] == (len(sheet.rows), len(sheet.columns))
        np.testing.assert_array_equal(sheet.tiles, again[name].tiles)
        assert not np.array_equal(sheet.tiles, other[name].tiles)


def test_interpolations_begin_and_end_at_the_two(drawn):
    for name in ("interpolated_labels", "interpolated_noise"):
        tiles = drawn[name].tiles
        for row in tiles:
            np.testing.assert_array_equal(row[0], tiles[3, 0])
        assert not np.array_equal(tiles[3, 0], tiles[3, -1])
    first, *_, last = drawn["interpolated_labels"].columns
    assert {first, last} < set(NAMES)
    assert first != last


def test_shares_of_classes_are_between_their_labels(variables):
    def shapes(labels):
        noise = mechanisms.same_for_all(jnp.ones((len(labels), 3)))
        offsets = dict.fromkeys(("texture", "background"), jnp.zeros((len(labels), 2), jnp.int32))
        return GENERATOR.apply(
            variables, mechanisms.same_for_all(labels), noise, offsets, train=False
        ).texture

    whole = shapes(jnp.arange(K))
    np.testing.assert_allclose(shapes(jnp.eye(K)), whole, atol=1e-6)
    half = shapes(jnp.array([[0.5, 0.5, 0, 0]]))[0]
    assert np.abs(half - (whole[0] + whole[1]) / 2).max() < np.abs(whole[0] - whole[1]).max()


def test_tiles_are_where_their_names_are():
    tiles = np.random.default_rng(0).integers(0, 256, (2, 3, 4, 5, 3)).astype(np.uint8)
    whole = sheets.mosaic(tiles, 2)
    assert whole.shape == (2 * 6 - 2, 3 * 7 - 2, 3)
    for row in range(2):
        for column in range(3):
            place = whole[row * 6 : row * 6 + 4, column * 7 : column * 7 + 5]
            np.testing.assert_array_equal(place, tiles[row, column])
    assert (whole[4:6] == 255).all()
    sheet = sheets.Sheet("Six tiles", ("first", "second"), ("a", "b", "a name too long"), tiles)
    picture = np.asarray(sheets.picture(sheet, 3))
    enlarged = np.asarray(Image.fromarray(tiles[1, 2]).resize((15, 12), Image.Resampling.NEAREST))
    windows = np.lib.stride_tricks.sliding_window_view(picture, enlarged.shape)[:, :, 0]
    assert np.argwhere((windows == enlarged).all((2, 3, 4))).shape == (1, 2)


def test_of_many_classes_a_few_have_rows():
    few = sheets.Artist(GENERATOR, meshes.create(), [str(k) for k in range(1000)]).shown
    assert (len(few), few[0], few[-1]) == (10, 0, 999)


def test_the_sheet_after_an_epoch_has_a_file_of_its_own(tmp_path, artist, variables):
    picture = artist.after_epoch(variables)
    assert picture.size == (5 * 34 - 2, K * 34 - 2)
    for epoch in (7, 1000):
        sheets.write_epoch(tmp_path / "sheets", epoch, picture)
    names = sorted(path.name for path in (tmp_path / "sheets").iterdir())
    assert names == ["epoch-007.png", "epoch-1000.png"]
    assert [epoch_of(name) for name in names] == [7, 1000]
    assert epoch_of("mechanisms.png") is None
    with pytest.raises(WriteError, match=r"epoch-007\.png cannot be written"):
        sheets.write_epoch(tmp_path / "sheets" / "epoch-007.png", 7, picture)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "sheets" / names[0])), picture)
