"""A run of a classifier of regions from the command line, on small records: training, resuming, evaluation, report."""

import json
import re
import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest

from cfmlc_jax import config as configs
from cfmlc_jax import lock, main
from cfmlc_jax.classify import opening
from cfmlc_jax.data.regions.lvis import Category
from cfmlc_jax.data.regions.records import INDEX, Writer
from cfmlc_jax.engine.hooks import Preemption
from cfmlc_jax.errors import InputError
from cfmlc_jax.regions import __main__ as regions_command
from cfmlc_jax.results import read
from cfmlc_jax.results.headline import headline
from cfmlc_jax.results.predictions import WHOLE, effect_of
from cfmlc_jax.torch_weights import __main__ as conversion

ROOT = Path(__file__).parents[2]
CATEGORIES = (Category(2, "cat", "f"), Category(5, "dog", "c"), Category(6, "yak", "r"))
WIDTH, STAGES, IMAGES = 8, 2, 16
SQUARES = np.array(
    [(0, 0, 10, 10), (20, 0, 30, 10), (40, 0, 50, 10), (60, 0, 70, 10), (0, 20, 10, 30)], np.float32
)
COUNTS = {2: 500, 5: 50, 6: 5}


def write(folder, seed, categories=CATEGORIES, width=WIDTH, stages=STAGES):
    """Records whose features are vectors of their classes with noise; and their annotations."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(0).normal(size=(len(categories) + 1, width))
    writer = Writer(folder, shape=(width,), categories=categories, stages=stages, shard_regions=40)
    images, boxes = [], []
    for i in range(IMAGES):
        labels = rng.permutation([0, 0, 1, 2 if i % 4 == 0 else 3, 3])
        features = centres[labels][:, None] + 0.3 * rng.normal(size=(5, stages, width))
        writer.add(i + 10, features, SQUARES, np.repeat(labels[:, None], stages, axis=1))
        present = [categories[label].id for label in labels if label < 3]
        absent = [each.id for each in categories if each.id not in present]
        images.append({"id": i + 10, "neg_category_ids": absent, "not_exhaustive_category_ids": []})
        for label, (left, top, right, bottom) in zip(labels, SQUARES.tolist()):
            if label < 3:
                box = [left, top, right - left, bottom - top]
                boxes.append({"id": len(boxes), "image_id": i + 10, "category_id": categories[label].id, "bbox": box})  # fmt: skip
    writer.close()
    listed = [{"id": c.id, "name": c.name, "frequency": c.frequency, "image_count": COUNTS[c.id]} for c in categories]  # fmt: skip
    folder.with_suffix(".json").write_text(
        json.dumps({"categories": listed, "images": images, "annotations": boxes})
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("regions")
    write(folder / "train", 1)
    write(folder / "val", 2)
    return folder


def words(data, variant="", **changes):
    fields = {
        "data.train": data / "train",
        "data.val": data / "val",
        "data.annotations": data / "val.json",
        "data.version": "own",
        "model.features": (WIDTH,),
        "model.stages": STAGES,
        "model.momentum": 0.9,
        "loss.stages": (1.0, 0.5),
        "optim.learning_rate": 0.5,
        "optim.sgd.milestones": (),
        "train.batch_size": 8,
        "train.regions": 5,
        "train.foreground": 0.8,
        "train.epochs": 6,
        "train.log_every": 1,
        "evaluate.batch_size": 32,
        "evaluate.every": 3,
        "effect.alphas": (0.5,),
    }
    fields |= {name.replace("__", "."): value for name, value in changes.items()}
    config = ROOT / "configs" / "longtail_lvis.py"
    return [
        f"--config={config}{':' if variant else ''}{variant}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]


@pytest.fixture(scope="module")
def finished():
    """The workdir of the first test's run, for those after it."""
    return {}


def test_train_evaluate_and_report(command, data, tmp_path, finished, capsys, monkeypatch):
    workdir = tmp_path / "run"
    code, out, err = command(*words(data), f"--workdir={workdir}")
    assert code == 0, err
    assert "16 images, 80 regions in 2 stages with 104 labels of classes and 56 of the background" in out
    assert "3 classes, 1 of them rare, 0 without a region" in out
    results = read.detections(workdir / "report")
    assert list(results.metrics) == [WHOLE, effect_of("feature", 0.5), effect_of("feature", 1.5)]
    for metrics in results.metrics.values():
        assert metrics["AP"] > 60
        assert set(metrics) == {"AP", "AP50", "AP75", "APr", "APc", "APf"}
    assert results.metrics[WHOLE]["AP"] > 90
    assert [each.boxes for each in results.classes] == [32, 16, 4]
    log = read.run(workdir).log
    losses = [line["train/loss"] for line in log if "train/loss" in line]
    assert len(losses) == 12
    assert losses[-1] < 0.5 * losses[0]
    assert [line["val/weights/AP"] > 0 for line in log if "val/weights/whole_AP" in line] == [True] * 2
    assert headline(workdir / "report")["final/val/whole/APr"] == results.metrics[WHOLE]["APr"]
    page = (workdir / "report" / "index.html").read_text()
    for text in ("Average precision by prediction", "AP over the strength of the effect", "yak", "rare"):
        assert text in page

    # The detections are in the form that LVIS' own program reads, and have the same precision.
    detections = workdir / "report" / "detections.json"
    assert regions_command.main(["score", str(detections), f"--annotations={data / 'val.json'}"]) == 0
    scored = dict(line.split() for line in capsys.readouterr().out.splitlines())
    expected = results.metrics[effect_of("feature", 1.5)]
    assert {name: float(value) for name, value in scored.items()} == pytest.approx(expected, abs=0.006)

    # A checkpoint alone is enough.
    again = tmp_path / "again"
    code, out, err = command("--mode=evaluate", f"--checkpoint={workdir}", f"--workdir={again}")
    assert code == 0, err
    assert read.detections(again / "report").metrics == results.metrics
    with pytest.raises(InputError, match="is of a classifier of stored regions, which takes no images"):
        opening.open(workdir)
    for program, arguments in (
        (
            main,
            [
                "--config=" + str(ROOT / "configs" / "scenes.py"),
                f"--config.init_from={workdir}",
                f"--workdir={again}2",
            ],
        ),
        (conversion, [str(workdir), str(tmp_path / "x.pth"), "--to_torch"]),
    ):
        monkeypatch.setattr("sys.argv", ["program", *arguments])
        assert program.main() == 1
        assert "is of a classifier of stored regions" in capsys.readouterr().err
    finished["workdir"] = workdir


def files_of(workdir):
    """The last logged loss and the metrics of a run."""
    last = [line for line in read.run(workdir).log if "train/loss" in line][-1]
    return last["train/loss"], read.detections(workdir / "report").metrics


def test_a_resumed_run_is_the_same(command, data, tmp_path, finished, monkeypatch):
    """Ended after the third epoch, and resumed."""
    workdir = tmp_path / "run"
    requests = iter([False] * 5 + [True])
    with monkeypatch.context() as patch:
        patch.setattr(Preemption, "requested", lambda self: next(requests, True))
        code, _, err = command(*words(data), f"--workdir={workdir}")
    assert code == 143, err
    code, out, err = command(*words(data), f"--workdir={workdir}")
    assert code == 0, err
    assert "resuming at step 6 of 12" in out
    assert files_of(workdir) == files_of(finished["workdir"])


def test_a_finished_run_waits_for_another_evaluation(command, data, finished, monkeypatch):
    monkeypatch.setattr(Preemption, "requested", lambda self: True)  # while it waits
    report = finished["workdir"] / "report"
    with lock.held(report, "evaluating"):
        code, out, err = command(*words(data), f"--workdir={finished['workdir']}")
    assert code == 143, err
    assert out.splitlines()[-1].startswith(f"waiting: {report} is in use by process")


def test_a_linear_classifier_has_no_effect(command, data, tmp_path):
    workdir = tmp_path / "plain"
    changes = {
        "evaluate__second_softmax": True,
        "train__epochs": 3,
        "model__shared_layers": 1,
        "model__hidden": 4,
    }
    code, _, err = command(*words(data, "plain", **changes), f"--workdir={workdir}")
    assert code == 0, err
    results = read.detections(workdir / "report")
    assert list(results.metrics) == [WHOLE]
    scores = [each["score"] for each in json.loads((workdir / "report" / "detections.json").read_text())]
    assert 1 / (4 + 1.72) < min(scores) <= max(scores) < np.e / 5.7


def test_bad_input_is_one_line(command, data, tmp_path):
    write(tmp_path / "narrow", 1, width=4)
    write(tmp_path / "single", 1, stages=1)
    other = (CATEGORIES[0], Category(3, "dog", "c"), CATEGORIES[2])
    COUNTS[3] = 50
    write(tmp_path / "other", 1, categories=other)
    unlabelled = tmp_path / "unlabelled"
    shutil.copytree(data / "train", unlabelled)
    index = json.loads((unlabelled / INDEX).read_text())
    (unlabelled / INDEX).write_text(json.dumps(index | {"labelled": False}))
    fewer = json.loads((data / "val.json").read_text())
    fewer["images"].append(fewer["images"][0] | {"id": 99})
    (tmp_path / "more.json").write_text(json.dumps(fewer))
    for changes, message in (
        (
            {"data__train": tmp_path / "narrow"},
            r"narrow has region features of shape \[4\], config.model.features is \[8\]; set that field to",
        ),
        ({"data__val": tmp_path / "single"}, "single has 1 stages, config.model.stages is 2"),
        ({"data__train": ""}, r"config.data.train is empty; give a folder of region features"),
        ({"data__annotations": ""}, "config.data.annotations is empty; give the JSON file"),
        ({"data__train": unlabelled}, "unlabelled has no labels"),
        ({"data__version": "v1"}, "has 3 categories, LVIS v1 has 1,203; set config.data.version"),
        (
            {"data__val": tmp_path / "other"},
            r"other: category_id 3 is not one of the 3 between 2 and 6 of .*val\.json; use files of the same version",
        ),
        ({"data__train": tmp_path / "other"}, "data.train and config.data.val have other categories"),
        (
            {"data__annotations": tmp_path / "more.json"},
            "has no record of 1 of the 17 images of .*, such as 99; write them too",
        ),
        ({"train__batch_size": 24}, "has 16 images, fewer than config.train.batch_size 24"),
        ({"model__num_heads": 3}, "config.model.num_heads 3 does not divide the 8 features"),
        ({"loss__stages": (1.0,)}, "config.loss.stages has 1 weights for 2 stages"),
        ({"model__features": (2, 4)}, r"config.model.features \(2, 4\) must be one number"),
    ):
        code, _, err = command(*words(data, **changes), f"--workdir={tmp_path / 'bad'}")
        assert code == 1, message
        assert len(err.strip().splitlines()) == 1, err
        assert re.search(message, err), err


def test_no_detection(command, data, tmp_path, finished):
    threshold = {"evaluate__score_threshold": 1.0}
    given = ("--mode=evaluate", f"--checkpoint={finished['workdir']}", f"--workdir={tmp_path / 'none'}")
    code, _, err = command(*words(data, **threshold), *given)
    assert code == 1
    assert "error: prediction whole: no detection, so that there is no average precision; lower config" in err


def test_other_records_than_the_checkpoint(command, data, tmp_path, finished):
    workdir = tmp_path / "run"
    shutil.copytree(finished["workdir"], workdir)
    write(tmp_path / "new" / "train", 5)
    index = tmp_path / "new" / "train" / INDEX
    index.write_text(index.read_text() + "\n")
    code, _, err = command(*words(data, data__train=index.parent), f"--workdir={workdir}")
    assert code == 1
    assert "was trained with other records in config.data.train; restore them" in err
    code, _, err = command(*words(data, model__tau=8.0), "--mode=evaluate", f"--checkpoint={workdir}")
    assert code == 1
    assert "has other config.model.tau (16.0) than the configuration (8.0)" in err


def test_check_and_score_commands(data, tmp_path, capsys):
    arguments = ["check", str(data / "train"), f"--annotations={data / 'train.json'}"]
    assert regions_command.main(arguments) == 0
    out = capsys.readouterr().out
    assert "16 images, 80 regions, 5 at most in an image" in out
    assert "--config.model.features=(8,) --config.model.stages=2" in out
    assert "3 categories, 1 rare, 1 common, 1 frequent" in out
    for content, message in (
        ([], "no detection, so that there is no average precision"),
        (
            [{"image_id": 10, "category_id": 7, "bbox": [0, 0, 1, 1], "score": 1}],
            "category_id 7 is not one of the 3",
        ),
        ([{"image_id": 10, "category_id": 2, "bbox": [0, 0, 1], "score": 1}], "is not 4 numbers"),
        ([{"image_id": 10, "category_id": 2, "bbox": [0, 0, 1, 1], "score": None}], "has the score None"),
        ([{"image_id": 10, "category_id": 2, "bbox": [0, 0, 1, 1], "score": 10**400}], "has the score 1000"),
        ({}, "is not a list"),
    ):
        path = tmp_path / "detections.json"
        path.write_text(json.dumps(content))
        assert regions_command.main(["score", str(path), f"--annotations={data / 'val.json'}"]) == 1
        assert message in capsys.readouterr().err
    assert regions_command.main(["score", str(path), f"--annotations={data / 'val.json'}", "--most=0"]) == 1
    assert "'0' is not a whole number of 1 or more" in capsys.readouterr().err


def test_variants():
    config = runpy.run_path(str(ROOT / "configs" / "longtail_lvis.py"))["get_config"]
    assert config("v05_plain").data.version == "v0.5"
    assert config("scenes_cosine").model.classifier == "cosine"
    configs.validate(config("scenes"))
    for variant in ("v2", "plain_cosine"):
        with pytest.raises(ValueError, match=f"no variant '{variant}'"):
            config(variant)
