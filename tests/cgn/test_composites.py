"""Composites of scenes: their classes are drawn independently, their labels and boxes are what was painted."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from training import mesh_of

from cfmlc_jax import config as configs
from cfmlc_jax.causal import mechanisms
from cfmlc_jax.cgn import __main__ as command
from cfmlc_jax.cgn import scenes
from cfmlc_jax.cgn.scenes import MOST, Pieces, Scene
from cfmlc_jax.data.sources.counterfactuals import CounterfactualScenes
from cfmlc_jax.data.sources.scene_objects import SceneObjects
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.errors import InputError
from cfmlc_jax.models.generators import mnist

CONFIG = Path(__file__).parent.parent / "configs" / "cgn_scenes_tiny.py"
GENERATOR = mnist.MnistGenerator(latent=3, ngf=2)
SOURCE = SceneObjects(Scenes("train", num_scenes=40))
GREY, SIDE, K = 90.0, 20, 4


def random(seed=0):
    return np.random.Generator(np.random.PCG64(seed))


@pytest.mark.parametrize("mean", [0.5, 2.9465, 4.0])
def test_sets_have_the_wanted_mean_and_no_favoured_pair(mean):
    rate = scenes.inclusion_rate(mean, 10)
    wanted = scenes.draw_wanted(random(), 40_000, rate, 10)
    assert wanted.sum(axis=1).mean() == pytest.approx(mean, rel=0.01)
    assert wanted.sum(axis=1).max() == min(MOST, wanted.sum(axis=1).max())
    together = np.array([[(wanted[:, i] & wanted[:, j]).mean() for j in range(10)] for i in range(10)])
    pairs = together[~np.eye(10, dtype=bool)]
    assert pairs.std() < 2 * np.sqrt(pairs.mean() / 40_000)


def test_the_rate_by_hand():
    # Two classes, at most one of them: sizes 0 and 1 with odds 1 : 2 r / (1 - r).
    assert scenes.inclusion_rate(0.5, 2, most=1) == pytest.approx(1 / 3)
    assert scenes.inclusion_rate(0.0, 10) == 0


def known(labels):
    """Pieces whose masks are rectangles and whose textures have a colour for each class."""
    n = len(labels)
    masks = np.zeros((n, 32, 32), np.float32)
    masks[:, 8:24, 4:28] = 1
    colours = np.array([[255, 255, 0], [0, 255, 255], [200, 255, 0], [255, 255, 255]], np.float32)[labels]
    textures = np.broadcast_to(colours[:, None, None], (n, 32, 32, 3)).copy()
    return Pieces(np.array(labels), masks, textures, np.full((n, 32, 32, 3), 70, np.float32))


def a_scene(boxes=(), classes=(), size=64):
    """A grey scene whose objects are squares of the value of their class."""
    image = np.full((size, size, 3), GREY, np.float32)
    for (left, top, right, bottom), label in zip(boxes, classes):
        image[top:bottom, left:right] = 10 * label
    return Scene(image, np.array(boxes, int).reshape(-1, 4), np.array(classes, int))


def classes(*present):
    return np.isin(np.arange(K), present)


def test_objects_stay_go_and_come():
    scene = a_scene([(2, 2, 12, 12), (40, 40, 56, 60)], [1, 2])
    pieces = known([0, 3, 0])
    made = scenes.compose(scene, classes(0, 1, 3), np.arange(3), pieces, [SIDE], random())
    assert made.classes.tolist() == [1, 0, 3]
    np.testing.assert_array_equal(made.boxes[0], [2, 2, 12, 12])
    np.testing.assert_array_equal(made.image[2:12, 2:12], scene.image[2:12, 2:12])
    for (left, top, right, bottom), label in zip(made.boxes[1:], made.classes[1:]):
        inside = made.image[top:bottom, left:right]
        # The rectangle of 24 of 32 pixels at side 20, with a soft edge of a pixel.
        assert abs(right - left - SIDE * 24 / 32) <= 2
        assert abs(bottom - top - SIDE * 16 / 32) <= 2
        colour = pieces.textures[pieces.labels.tolist().index(label), 0, 0]
        assert np.abs(inside[2:-2, 2:-2] - colour).max() < 0.01
    rest = np.ones((64, 64), bool)
    for left, top, right, bottom in made.boxes:
        rest[top:bottom, left:right] = False
    # What object 2 covered, and all else, is background.
    np.testing.assert_array_equal(made.image[rest], GREY)
    assert scene.image[45, 45, 0] == 20  # the real scene is as it was


def test_an_object_that_stays_is_not_covered_with_one_that_goes():
    scene = a_scene([(10, 10, 30, 30), (20, 20, 40, 40)], [2, 1])
    made = scenes.compose(scene, classes(1), np.arange(1), known([0]), [SIDE], random())
    assert made.classes.tolist() == [1]
    np.testing.assert_array_equal(made.image[20:40, 20:40], 10)
    np.testing.assert_array_equal(made.image[10:20, 10:30], GREY)


def test_a_crowded_scene_is_covered_by_quarters_or_generated():
    boxes = [(0, 0, 64, 40), (0, 50, 50, 64)]
    made = scenes.compose(a_scene(boxes, [0, 1]), classes(1), np.arange(1), known([0]), [SIDE], random())
    assert np.isin(made.image[:40], (GREY, 70)).all()
    full = a_scene([(0, 0, 64, 64)], [1])
    made = scenes.compose(full, classes(), np.arange(1), known([0]), [SIDE], random())
    np.testing.assert_array_equal(made.image, 70)


def test_a_mask_without_an_object_is_no_label():
    pieces = known([0, 3, 0])
    pieces.masks[0] = 0.05
    made = scenes.compose(a_scene(), classes(0, 3), np.arange(3), pieces, [SIDE], random())
    assert made.classes.tolist() == [3]
    assert len(made.boxes) == 1


def test_masks_are_of_what_is_inside():
    masks = known([0, 0]).masks
    masks[1] = 1 - masks[1]
    np.testing.assert_array_equal(scenes.of_inside(masks), masks[[0, 0]])


def test_the_mean_along_the_sides_by_hand():
    mask = np.zeros((2, 6, 6, 1), np.float32)
    mask[0, 2:4, 2:4] = 1  # what is inside does not count
    mask[1, 0] = 1
    mask[1, 5, 0] = 1
    np.testing.assert_allclose(mechanisms.along_sides(mask), [0, 7 / 32], rtol=1e-6)


def test_a_texture_stands_out():
    pieces = known([0, 3])
    pieces.textures[0] = GREY
    made = scenes.compose(a_scene(), classes(0), np.array([0, 1]), pieces, [SIDE], random())
    left, top, right, bottom = made.boxes[0]
    assert made.image[(top + bottom) // 2, (left + right) // 2].tolist() == [255, 255, 255]


def test_a_generated_background_has_no_objects():
    piece = random().random((32, 32, 3)).astype(np.float32) * 255
    scene = scenes.background(piece, 64)
    assert scene.image.shape == (64, 64, 3)
    assert scene.boxes.shape == (0, 4)
    assert scene.image.std() > 20
    centre = scene.image[18:45, 18:45]
    np.testing.assert_array_equal(scene.image[18:45, 45:63], centre[:, ::-1][:, :18])


@pytest.fixture(scope="module")
def variables():
    return GENERATOR.init(jax.random.key(0), *GENERATOR.example(), train=False)


@pytest.fixture(scope="module")
def whole(tmp_path_factory, variables):
    folder = tmp_path_factory.mktemp("composites") / "whole"
    return folder, write(folder, variables)


def write(folder, variables, *, poll=lambda: None, seed=3, **changes):
    arguments = {"num_records": 50, "shard_size": 20, "generated_backgrounds": 0.2} | changes
    scenes.write(
        folder,
        GENERATOR,
        variables,
        SOURCE,
        seed=seed,
        mesh=mesh_of(1),
        origin={"checkpoint": "12"},
        print_line=lambda line: None,
        poll=poll,
        **arguments,
    )
    return CounterfactualScenes(folder)


def test_labels_are_the_boxes_and_nothing_depends_on_the_number_of_records(whole, tmp_path, variables):
    folder, records = whole
    boxes = records.boxes()
    for i in range(50):
        corners, labels = boxes.of_image(i)
        np.testing.assert_array_equal(np.bincount(labels, minlength=10), records.labels[i])
        assert corners.size == 0 or (corners.min() >= 0 and corners.max() <= 64)
        assert (corners[:, 2:] > corners[:, :2]).all()
    assert 2 < records.labels.sum(axis=1).mean() < 4
    index = json.loads((folder / "index.json").read_text())
    assert (index["seed"], index["checkpoint"], index["generated_backgrounds"]) == (3, "12", 0.2)
    more = write(tmp_path / "more", variables, num_records=20)
    np.testing.assert_array_equal(more.labels, records.labels[:20])
    assert [more[i]["image"] for i in range(20)] == [records[i]["image"] for i in range(20)]
    other = write(tmp_path / "other", variables, num_records=20, seed=4)
    assert not np.array_equal(other.labels, records.labels[:20])


def test_without_additions_all_objects_are_of_the_real_scene(whole, tmp_path, variables):
    records = write(
        tmp_path / "removals", variables, num_records=20, generated_backgrounds=0.0, removals_alone=True
    )
    bases = {tuple(map(int, row)): set() for row in SOURCE.scenes.boxes().corners}
    assert 0 < records.labels.sum() < 0.6 * whole[1].labels[:20].sum()
    assert all(tuple(map(int, row)) in bases for row in records.boxes().corners)


def test_an_interrupted_call_is_resumed_and_other_arguments_are_refused(whole, tmp_path, variables):
    calls, whole = [], whole[1]

    def interrupt_at_second_shard():
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "twice", variables, poll=interrupt_at_second_shard)
    first = (tmp_path / "twice" / "records-00000-of-00003.array_record").stat().st_mtime_ns
    with pytest.raises(InputError, match=r"generated otherwise \(generated_backgrounds 0\.2 -> 0\.3"):
        write(tmp_path / "twice", variables, generated_backgrounds=0.3)
    resumed = write(tmp_path / "twice", variables)
    assert (tmp_path / "twice" / "records-00000-of-00003.array_record").stat().st_mtime_ns == first
    assert resumed.ids == whole.ids
    assert [resumed[i]["image"] for i in range(50)] == [whole[i]["image"] for i in range(50)]
    for ours, theirs in zip(vars(resumed.boxes()).values(), vars(whole.boxes()).values()):
        np.testing.assert_array_equal(ours, theirs)


def test_objects_of_scenes_train_no_classifiers_of_single_objects():
    config = configs.default("cgn")
    config.data.source = "scene_objects"
    with pytest.raises(
        InputError, match=r"names has 'plain', but data\.source 'scene_objects' gives multi-label"
    ):
        configs.validate(config)
    config.classifiers.names = ()
    config.counterfactuals.per_shape = 7  # which composites do not have
    assert configs.unused(configs.validate(config)) == ["counterfactuals.per_shape"]


def test_a_run_composes_scenes_and_so_does_the_command(tmp_path, capsys):
    main = [sys.executable, "-m", "cfmlc_jax.main", f"--config={CONFIG}", f"--workdir={tmp_path / 'run'}"]
    environment = os.environ | {
        "PYTHONPATH": str(CONFIG.parents[2]),
        "XLA_FLAGS": "--xla_backend_optimization_level=1",
    }
    done = subprocess.run(main, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "counterfactuals: 40 records in" in done.stdout + done.stderr
    records = CounterfactualScenes(tmp_path / "run" / "counterfactuals")
    flags = ["generate", f"--checkpoint={tmp_path / 'run'}", f"--out={tmp_path / 'drawn'}", "--shard-size=20"]
    assert command.main([*flags, "--records=30"]) == 0
    drawn = CounterfactualScenes(tmp_path / "drawn")
    assert len(drawn) == 30
    np.testing.assert_array_equal(drawn.labels[:20], records.labels[:20])  # the same seed and weights
    capsys.readouterr()
    assert command.main([*flags, "--records=30", "--per-shape=5"]) == 1
    assert "--per-shape is for single objects" in capsys.readouterr().err
    alone = ["generate", f"--checkpoint={tmp_path / 'run'}", f"--out={tmp_path / 'alone'}", "--shard-size=20"]
    assert command.main([*alone, "--records=20", "--removals-alone"]) == 0
    assert CounterfactualScenes(tmp_path / "alone").labels.sum() < drawn.labels[:20].sum()
