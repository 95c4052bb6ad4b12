"""The measures of context on a small data set in COCO's layout: what is removed, what is counted, and the command's errors."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax.classify import build
from cfmlc_jax.context import __main__ as command
from cfmlc_jax.context import protocol, removal
from cfmlc_jax.context.removal import Removal
from cfmlc_jax.data.sources.boxes import Boxes
from cfmlc_jax.data.sources.coco import Coco
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.metrics import cooccurrence
from cfmlc_jax.results.predictions import COMBINED, Prediction
from cfmlc_jax.results.scores import Scores

NAMES = ("cup", "plate", "spoon", "sky")
COLOURS = ((220, 30, 30), (40, 200, 40), (40, 60, 220), (130, 130, 130))
SIDE = 48
# Left and top of the object of each class; sky is the whole picture.
PLACES = ((4, 4), (28, 4), (4, 28))
LENGTH = 14


def classes_of(number):
    """Cup and plate are together in four of six images; sky is in all but one of five."""
    kinds = ((0, 1), (0, 1), (0, 1), (0, 1), (0, 2), (2,))
    return (*kinds[number % 6], *((3,) if number % 5 else ()))


def write_split(root, split, images, *, boxes=True):
    folder = root / f"{split}2014"
    folder.mkdir(parents=True, exist_ok=True)
    document = {
        "images": [],
        "annotations": [],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(NAMES)],
    }
    for number in range(images):
        identity = number + (1000 if split == "val" else 0)
        file = f"COCO_{split}2014_{identity:012d}.jpg"
        pixels = np.full((SIDE, SIDE, 3), 100 + number % 40, np.uint8)
        document["images"].append({"id": identity, "file_name": file, "width": SIDE, "height": SIDE})
        for k in classes_of(number):
            left, top, length = (0, 0, SIDE) if k == 3 else (*PLACES[k], LENGTH)
            pixels[top : top + length, left : left + length] = COLOURS[k]
            row = {"image_id": identity, "category_id": k + 1}
            if boxes:
                row["bbox"] = [left, top, length, length]
            if k == 1:  # plates have outlines: the upper half of their box
                right, middle = left + length - 1, top + length // 2 - 1
                row["segmentation"] = [[left, top, right, top, right, middle, left, middle]]
            document["annotations"].append(row)
        Image.fromarray(pixels).save(folder / file, quality=95)
    (root / "annotations").mkdir(exist_ok=True)
    (root / "annotations" / f"instances_{split}2014.json").write_text(json.dumps(document))
    return root


def write_checkpoint(path, root, *, names=NAMES, **fields):
    config = configs.default()
    config.data.source, config.data.root = "coco", str(root)
    config.data.test_splits = ("val",)
    config.data.threads = 1
    config.views.image_size = 32
    config.model.name = "resnet_small"
    config.method = "whole"
    config.effect.kinds = ("whole",)
    config.effect.alphas = (0.5,)
    config.train.batch_size = config.evaluate.batch_size = 16
    config.update_from_flattened_dict(fields)
    config = configs.validate(config)
    model = build.initial(config, build.create(config, len(names)))
    random = np.random.default_rng(0)

    def spread(place, leaf):
        if "head" not in jax.tree_util.keystr(place):
            return leaf
        return jax.device_put(random.normal(0, 0.5, leaf.shape).astype(np.float32), leaf.sharding)

    meta = {"config": configs.to_json(config), "class_names": list(names), "num_classes": len(names)}
    checkpoints.write(path, model=jax.tree_util.tree_map_with_path(spread, model), meta=meta)
    return path


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("coco")
    write_split(folder, "train", 36)
    return write_split(folder, "val", 30)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory, root):
    return write_checkpoint(tmp_path_factory.mktemp("run") / "model", root)


def run(capsys, *arguments):
    code = command.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return code, captured.out, captured.err


# The command


def test_the_command_writes_tables_numbers_and_pictures(capsys, checkpoint, root, tmp_path):
    code, out, err = run(capsys, f"--checkpoint={checkpoint}", f"--out={tmp_path}", "--pairs=2")
    assert (code, err) == (0, "")
    found = json.loads((tmp_path / "context.json").read_text())
    # Sky is in the picture everywhere and says little; cup and plate are each other's strongest context.
    assert {(pair["target"], pair["context"]) for pair in found["pairs"]} == {
        ("cup", "plate"),
        ("plate", "cup"),
    }
    assert next(pair for pair in found["pairs"] if pair["target"] == "cup")["beside"] == 1.0
    labels = Coco(root, "val").labels
    removed = int(labels[:, 0].sum() + labels[:, 1].sum())
    assert (found["images"], found["removals"]) == (30, removed) == (30, 45)
    move = found["moves"]["combined"]
    assert move["removed"]["entries"] == removed
    assert move["present"]["entries"] == 2 * int((labels[:, 0] & labels[:, 1]).sum())
    assert move["absent"]["entries"] == int((labels[:, 0] > labels[:, 1]).sum())
    assert move["removed"]["logit"][0] != 0
    assert set(found["uses"]) == {"whole", "combined", "tde_whole_0.5"}
    assert found["correlation"][1] <= found["correlation"][0]
    text = (tmp_path / "context.md").read_text()
    assert text in out
    assert "## 45 pictures without the objects of a context class" in text
    with Image.open(tmp_path / "context.jpg") as sheet:
        assert sheet.height > 8 * 200


def test_without_removals_no_boxes_are_needed(capsys, root, checkpoint, tmp_path):
    for split, images in (("train", 36), ("val", 12)):
        write_split(tmp_path / "data", split, images, boxes=False)
    flags = f"--checkpoint={checkpoint}", f"--root={tmp_path / 'data'}", f"--out={tmp_path / 'out'}"
    code, _, err = run(capsys, *flags)
    assert code == 1
    assert err == (
        "error: val of coco has no boxes or outlines of objects, so none can be removed; give --removals=0 for the other "
        "measures\n"
    )
    assert not (tmp_path / "out").exists()
    code, _, err = run(capsys, *flags, "--removals=0")
    assert (code, err) == (0, "")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["context.json", "context.md"]
    assert json.loads((tmp_path / "out" / "context.json").read_text())["moves"] == {}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--min_images=100"],
            "no two classes are together in 100 training images more often than by chance; most are cup and plate, in 24",
        ),
        (
            ["--largest=0.01"],
            "val has 0 images from which a context class (cup, plate, sky, …) can be removed",
        ),
        (["--removals=3"], "val has 3 images from which a context class"),
        (["--largest=0"], "'0' is not a share above 0 and at most 1"),
        (["--split=test"], "test"),
        (["--root=missing"], "data root missing is not a folder"),
    ],
)
def test_errors_are_one_line(capsys, checkpoint, tmp_path, flags, message):
    code, _, err = run(capsys, f"--checkpoint={checkpoint}", f"--out={tmp_path}", *flags)
    assert code == 1
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert message in err
    assert not list(tmp_path.iterdir())


def test_a_small_split_other_classes_and_single_labels(capsys, checkpoint, root, tmp_path):
    write_split(tmp_path / "few", "train", 36)
    write_split(tmp_path / "few", "val", 5)
    code, _, err = run(capsys, f"--checkpoint={checkpoint}", f"--root={tmp_path / 'few'}")
    assert (code, "val has 5 images; 10 are needed" in err) == (1, True)
    other = write_checkpoint(tmp_path / "other", root, names=("a", "b", "c", "d"))
    code, _, err = run(capsys, f"--checkpoint={other}")
    assert (code, "val has 4 classes (cup, plate, spoon, …) that are not those of checkpoint" in err) == (
        1,
        True,
    )


# What is removed


def test_regions_follow_outlines_and_else_boxes(root):
    source = Coco(root, "val")
    image = int(np.flatnonzero(source.labels[:, 0] & source.labels[:, 1])[0])
    regions = removal.Regions(source, source.boxes(), [image])
    cup, plate = (regions(Removal(image, label), (SIDE, SIDE)) for label in (0, 1))
    expected = np.zeros((SIDE, SIDE), bool)
    expected[4:18, 4:18] = True
    np.testing.assert_array_equal(cup, expected)
    expected = np.zeros((SIDE, SIDE), bool)
    expected[4:11, 28:42] = True
    np.testing.assert_array_equal(plate, expected)
    by_boxes = removal.Regions(source, source.boxes(), [image], by_boxes=True)
    assert by_boxes(Removal(image, 1), (SIDE, SIDE)).sum() == LENGTH**2
    # At twice the size the box is twice as large.
    assert regions(Removal(image, 0), (2 * SIDE, 2 * SIDE)).sum() == 4 * cup.sum()


def test_a_scene_without_a_class_is_close_to_the_true_one():
    scenes = Scenes("test_balanced", num_scenes=20)
    boxes = scenes.boxes()
    removals = removal.possible(boxes, scenes.labels, range(10), 0.3)
    assert len(removals) == scenes.labels.sum()
    pictures = removal.WithoutClass(scenes, removals, boxes, exif=False)
    np.testing.assert_array_equal(
        pictures.labels.sum(axis=1), scenes.labels[[r.image for r in removals]].sum(axis=1) - 1
    )
    error, change = [], []
    for index, each in enumerate(removals):
        before, hole, after = pictures.pictures(index)
        np.testing.assert_array_equal(after[~hole], before[~hole])
        position = [item.label for item in scenes.objects(each.image)].index(each.label)
        true = scenes.render(each.image, without=position).astype(int)
        error.append(np.abs(after - true)[hole].mean())
        change.append(np.abs(before - true)[hole].mean())
    assert np.mean(error) < 0.4 * np.mean(change)
    assert pictures[0]["id"].endswith(f"-without-digit {removals[0].label}")


def test_possible_removals_are_neither_tiny_nor_large():
    boxes = Boxes(
        corners=np.array(
            [[0, 0, 10, 10], [0, 0, 60, 60], [0, 0, 1, 1], [0, 0, 20, 20], [50, 50, 70, 70]], np.float32
        ),
        classes=np.array([0, 1, 0, 0, 0], np.int32),
        images=np.array([0, 0, 1, 2, 2]),
        sizes=np.array([[100, 100], [100, 100], [100, 100], [0, 0]]),
    )
    labels = np.array([[1, 1], [1, 0], [1, 0], [1, 1]], np.uint8)
    assert removal.possible(boxes, labels, [0, 1], 0.3) == [Removal(0, 0), Removal(2, 0)]
    assert removal.possible(boxes, labels, [1], 0.4) == [Removal(0, 1)]
    assert removal.covered(boxes, Removal(0, 1), 0) == 1.0  # the small box lies in the large one
    assert removal.covered(boxes, Removal(0, 0), 1) == pytest.approx(100 / 3600)
    assert removal.covered(boxes, Removal(3, 0), 1) == 1.0  # unknown places count as covered


def test_classes_are_chosen_in_turn():
    removals = [Removal(image, label) for label, number in ((0, 30), (1, 2)) for image in range(number)]
    chosen = removal.chosen(removals, 7, np.random.default_rng(0))
    assert [each.label for each in chosen] == [0] * 5 + [1] * 2
    assert len(set(chosen)) == 7
    assert removal.chosen(removals, 100, np.random.default_rng(0)) == removals


# What is counted


def test_moves_by_hand():
    labels = np.array([[1, 1, 0, 0], [1, 0, 0, 1]], np.uint8)
    before = np.array([[2.0, 1.0, 3.0, 1.0], [4.0, 2.0, -1.0, 5.0]])
    after = np.array([[-1.0, 0.5, 2.0, 1.0], [1.0, -2.0, -1.5, 5.0]])
    pairs = np.array([[1, 0], [3, 1]])  # 0 is the context of 1
    kept = np.ones((2, 4), bool)
    removals = [Removal(0, 0), Removal(1, 0)]
    entries = protocol.counted(removals, labels, pairs, kept)
    result = protocol.moves({COMBINED: before}, {COMBINED: after}, entries, 0)[COMBINED]
    assert (result.removed.entries, result.removed.logit.value) == (2, 3.0)
    assert (result.removed.before, result.removed.after) == (100.0, 50.0)
    assert (result.present.entries, result.present.logit.value) == (1, 0.5)
    assert (result.absent.entries, result.absent.logit.value, result.absent.before, result.absent.after) == (
        1,
        4.0,
        100.0,
        0.0,
    )
    assert result.others.entries == 3  # 2 and 3 in the first picture, 2 in the second
    assert result.others.logit.value == pytest.approx((1.0 + 0.0 + 0.5) / 3)
    kept[0, 1] = False
    entries = protocol.counted(removals, labels, pairs, kept)
    result = protocol.moves({COMBINED: before}, {COMBINED: after}, entries, 0)[COMBINED]
    assert result.present.entries == 0
    assert np.isnan(result.present.logit.value)


def test_weighted_measures_count_images_by_their_weights():
    random = np.random.default_rng(1)
    labels = (random.random((40, 3)) < 0.5).astype(np.uint8)
    logits = random.normal(size=(40, 3)).astype(np.float32)
    twice = random.random(40) < 0.5
    pairs = np.array([[0, 1], [2, 0]])
    repeated = np.repeat(np.arange(40), 1 + twice)
    own = cooccurrence.weighted_excess(logits, labels, 0.0, pairs)(1.0 + twice[None])[0]
    rates = cooccurrence.false_positive_rates(logits[repeated], labels[repeated], 0.0)
    np.testing.assert_allclose(own, rates.excess[tuple(pairs.T)])


def test_uses_on_uncorrelated_labels_equal_those_of_the_split():
    """All sets of labels equally often: nothing is to be decorrelated, so weights are 1."""
    labels = np.tile(np.array([[a, b, c] for a in (0, 1) for b in (0, 1) for c in (0, 1)], np.uint8), (6, 1))
    logits = np.random.default_rng(0).normal(size=labels.shape).astype(np.float32)
    uses, weighting = protocol.uses(
        Scores({"whole": logits, "combined": logits}, labels), (), np.array([[0, 1]]), 0.3, 0
    )
    assert weighting.effective_share == 1
    use = uses[Prediction("whole")]
    assert use.reweighted_mAP == pytest.approx(use.mAP)
    assert use.reweighted_excess_fpr == pytest.approx(use.excess_fpr.value)
    assert use.reweighted_context_auc == pytest.approx(use.context_auc.value)


def test_undefined_numbers_are_dashes_and_null():
    nothing = protocol._move(np.zeros((1, 2)), np.zeros((1, 2)), np.zeros((1, 2), bool), 0)
    assert protocol._move_cells(nothing) == ("–", "–")
    assert protocol._plain({"a": (np.nan, np.float64(1.5))}) == {"a": [None, 1.5]}


def test_folders_are_named_after_the_run():
    assert command._name("runs/coco") == "coco"
    assert command._name("runs/coco/checkpoints/750") == "coco"
    assert command._name("exported.ckpt") == "exported.ckpt"


def test_scenes_are_compared_with_the_truth(capsys, tmp_path):
    scenes = {
        "data.source": "scenes",
        "data.test_splits": ("test_balanced",),
        "data.scenes.num_train": 200,
        "data.scenes.num_test": 16,
    }
    path = write_checkpoint(tmp_path / "model", "", names=Scenes("train", num_scenes=1).class_names, **scenes)
    code, out, err = run(capsys, f"--checkpoint={path}", f"--out={tmp_path / 'out'}", "--removals=12")
    assert (code, err) == (0, "")
    found = json.loads((tmp_path / "out" / "context.json").read_text())
    assert found["removals"] == found["agreement"]["removed"]["effects"] == 12
    assert "Rendered without the object, which is the truth:" in out
    assert (
        found["true_moves"]["combined"]["removed"]["before"]
        == found["moves"]["combined"]["removed"]["before"]
    )
    own = Scenes("test_balanced", num_scenes=1)
    objects = own.objects(0)
    truth = removal.TrulyWithout(own, [Removal(0, item.label) for item in objects])
    for index, item in enumerate(objects):
        np.testing.assert_array_equal(truth[index]["image"], own.render(0, without=index))
        assert truth.labels[index].sum() == len(objects) - 1
        assert not truth.labels[index, item.label]
