"""Thresholds from the command to everything that decides by them, and scores for other programs."""

import csv
import json
import re
import sys
import types
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cfmlc_jax
from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax.classify import build, evaluate, gallery, opening
from cfmlc_jax.data.sources.table import Table
from cfmlc_jax.decisions import __main__ as command
from cfmlc_jax.decisions import scores_file
from cfmlc_jax.errors import InputError
from cfmlc_jax.export import about, folder
from cfmlc_jax.predict import __main__ as predict
from cfmlc_jax.results import read, thresholds
from cfmlc_jax.results.predictions import COMBINED, Prediction

CLASSES = ["<b>cat</b>", "dog", "newt"]
NEVER = "newt"  # no image of val has it
DOCUMENT = Path(__file__).parents[2] / "docs" / "decisions.md"


def write_table(root):
    """Sixteen images for training and as many for validation, one with a name that a spreadsheet would compute."""
    root.mkdir()
    rng = np.random.default_rng(0)
    (root / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    for split in ("train", "val"):
        lines = []
        for i in range(16):
            name = "=1+1.png" if (split, i) == ("val", 3) else f"{split}{i}.png"
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), np.uint8)).save(root / name)
            labels = [CLASSES[i % 2]] + ([NEVER] if split == "train" and i < 4 else [])
            lines.append(f"{name},{';'.join(labels)}\n")
        (root / f"{split}.csv").write_text("".join(lines))
    return root


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run with one checkpoint, untrained, whose evaluation has found nothing yet."""
    folder = tmp_path_factory.mktemp("decisions")
    config = configs.default()
    config.data.source, config.data.root = "table", str(write_table(folder / "photos"))
    config.data.threads = 1
    config.views.image_size = 16
    config.model.name, config.method = "resnet_small", "whole"
    config.effect.kinds = ()
    config.train.batch_size = config.evaluate.batch_size = 8
    config = configs.validate(config)
    model = build.initial(config, build.create(config, len(CLASSES)))
    (folder / "run" / "checkpoints").mkdir(parents=True)
    meta = {"config": configs.to_json(config), "class_names": CLASSES, "num_classes": len(CLASSES)}
    checkpoints.write(folder / "run" / "checkpoints" / "4", model=model, meta=meta)
    return folder / "run"


@pytest.fixture
def fitted(run):
    """The run with thresholds by best F1, and what fitting them printed."""
    assert command.main(["thresholds", str(run), "--batch_size=8"]) == 0
    yield run
    thresholds.remove(run / "checkpoints" / "4")


def stored(run):
    return thresholds.read(run / "checkpoints" / "4", CLASSES)


def photos(run):
    return sorted(str(path) for path in (run.parent / "photos").glob("val*.png"))


def test_fitted_thresholds_decide_everywhere(run, capsys, tmp_path):
    before = cfmlc_jax.load(run, batch_size=8)
    np.testing.assert_array_equal(before.thresholds, np.full(3, 0.5, np.float32))
    assert command.main(["thresholds", str(run), "--batch_size=8"]) == 0
    out = capsys.readouterr().out
    assert "thresholds: best F1 on val, 16 images" in out
    assert f"no positive image in val: 0.5 (1 of 3 classes: {NEVER})" in out
    chosen = stored(run).of("average", COMBINED)
    assert chosen[2] == 0.5
    assert (chosen[:2] != 0.5).all()
    # Python
    classifier = cfmlc_jax.load(run, batch_size=8)
    np.testing.assert_array_equal(classifier.thresholds, chosen)
    predicted = classifier.predict(photos(run))
    for each in predicted:
        present = {name for name, _ in each.present()}
        assert present == {CLASSES[k] for k in np.flatnonzero(each.probabilities > chosen)}
        assert {name for name, _ in each.present(0.5)} == {
            CLASSES[k] for k in np.flatnonzero(each.probabilities > 0.5)
        }
    # The command
    assert predict.main([f"--checkpoint={run}", "--format=jsonl", "--batch_size=8", *photos(run)]) == 0
    captured = capsys.readouterr()
    listed = [[label["class"] for label in json.loads(line)["labels"]] for line in captured.out.splitlines()]
    assert listed == [[name for name, _ in each.present()] for each in predicted]
    assert "thresholds: best F1 on val" in captured.err
    assert (
        predict.main(
            [f"--checkpoint={run}", "--format=jsonl", "--batch_size=8", "--threshold=0", *photos(run)]
        )
        == 0
    )
    assert all(len(json.loads(line)["labels"]) == 3 for line in capsys.readouterr().out.splitlines())
    # An exported file
    opened = opening.open(run, batch_size=8)
    document = about.about(opened, weights="average", alpha=0.5)
    assert (document["thresholds"], document["thresholds_by"]) == (chosen.tolist(), "best F1 on val")
    assert document["output_thresholds"] == {name: chosen.tolist() for name in ("whole", "combined")}
    folder.write(tmp_path / "exported", opened, "average", document)
    np.testing.assert_array_equal(cfmlc_jax.load(tmp_path / "exported", batch_size=8).thresholds, chosen)
    # Evaluation, report
    (run / "report").mkdir()
    evaluate.evaluate_checkpoint(run / "checkpoints" / "4", None, run / "report", print)
    printed = capsys.readouterr().out
    assert "val is the split that the thresholds were fitted on" in printed
    results, evidence = read.results(run / "report")
    assert evidence.thresholds == stored(run)
    decisions = results["val"].findings.decisions
    assert decisions.title == "best F1 on val"
    assert (
        decisions.predictions[COMBINED]["OF1"] >= results["val"].measures["average"].metrics[COMBINED]["OF1"]
    )
    gallery = evidence.gallery["val"]
    assert [images.label for images in gallery.classes] == [0, 1, 2]
    assert [len(images.without) for images in gallery.classes] == [3, 3, 3]
    assert [len(images.with_class) for images in gallery.classes] == [3, 3, 0]
    for images in gallery.classes:
        for entries, falling, has in ((images.without, True, False), (images.with_class, False, True)):
            values = [entry.probability for entry in entries]
            assert values == sorted(values, reverse=falling)
            assert all((images.label in gallery.pictures[entry.picture].labels) == has for entry in entries)
    thresholds.remove(run / "checkpoints" / "4")


def test_the_report_shows_no_image_to_a_class_of_which_it_is_unknown(run):
    source = Table(run.parent / "photos", "val")
    labels = source.labels.astype(np.int8)
    labels[:6] = -1
    chosen = gallery.choose(np.full(labels.shape, 0.5), labels, np.zeros(3), source, exif=False)
    assert {picture.id for picture in chosen.pictures} <= set(source.ids[6:])
    assert [len(images.without) for images in chosen.classes] == [3, 3, 3]
    assert [len(images.with_class) for images in chosen.classes] == [3, 3, 0]


def test_thresholds_are_of_the_predictions_that_they_were_fitted_to(fitted):
    own = opening.open(fitted)
    assert own.thresholds == stored(fitted)
    other = configs.from_json(configs.to_json(own.config) | {"method": "pat_i"})
    assert opening.open(fitted, other).thresholds is None
    # A larger batch or another rule predicts the same.
    same = configs.replaced(own.config, {"evaluate.batch_size": 16, "evaluate.thresholds": "rate"})
    assert opening.open(fitted, same).thresholds == stored(fitted)


def test_thresholds_of_an_effect(run, capsys, tmp_path):
    """The null image lowers each class's logit by a constant, so that the effect decides as the logit does."""
    effect = Prediction.parse("tde_whole_0.7")
    flags = ["--prediction=tde_whole_0.7", "--format=jsonl", "--batch_size=8", *photos(run)]
    assert command.main(["thresholds", str(run), "--batch_size=8", "--prediction=tde_whole_0.7"]) == 0
    assert "| class, TDE whole, α 0.7 |" in capsys.readouterr().out
    chosen = stored(run).of("average", effect)
    assert (chosen[:2] != stored(run).of("average", COMBINED)[:2]).all()
    assert predict.main([f"--checkpoint={run}", *flags]) == 0
    out, err = capsys.readouterr()
    assert "thresholds: best F1 on val" in err
    listed = [{label["class"] for label in json.loads(line)["labels"]} for line in out.splitlines()]
    shown = cfmlc_jax.load(run, batch_size=8).predict(photos(run))
    # The third class has no image in val, and the threshold 0.5.
    assert [names - {NEVER} for names in listed] == [
        {name for name, _ in each.present()} - {NEVER} for each in shown
    ]
    assert (
        command.main(
            [
                "scores",
                str(run),
                "--batch_size=8",
                f"--out={tmp_path / 's.npz'}",
                "--prediction=tde_whole_0.7",
            ]
        )
        == 0
    )
    with np.load(tmp_path / "s.npz") as arrays:
        np.testing.assert_array_equal(arrays["thresholds"], chosen)
    # Of another null image it is another effect.
    own = opening.open(run)
    blurred = opening.open(
        run, configs.replaced(own.config, {"effect.kinds": ("whole",), "effect.null": "blur"})
    )
    assert blurred.thresholds == stored(run).without_effects()
    assert blurred.thresholds.of("average", effect) is None
    assert predict.main([f"--checkpoint={run}", *(flag.replace("0.7", "0.3") for flag in flags)]) == 0
    assert "thresholds RUN --prediction=tde_whole_0.3" in capsys.readouterr().err
    thresholds.remove(run / "checkpoints" / "4")


@pytest.mark.parametrize(
    ("flags", "title", "words"),
    [
        (["--rule=rate"], "rate of the training split on val", ""),
        (["--rule=precision", "--precision=1"], "precision of at least 1 on val", NEVER),
    ],
)
def test_other_rules(run, capsys, flags, title, words):
    assert command.main(["thresholds", str(run), "--batch_size=8", *flags]) == 0
    assert words in capsys.readouterr().out
    found = stored(run)
    assert found.title == title
    assert command.main(["scores", str(run), "--batch_size=8", f"--out={run.parent / 'scores.npz'}"]) == 0
    with np.load(run.parent / "scores.npz") as arrays:
        predicted = arrays["scores"] > arrays["thresholds"]
        if "--rule=rate" in flags:
            # Of 16 training images 8, 8 and 4.
            assert predicted.sum(axis=0).tolist() == [8, 8, 4]
        else:
            assert predicted[:, :2].any()
            assert arrays["labels"][predicted[:, :2].nonzero()].all()
    assert command.main(["thresholds", str(run), "--rule=fixed"]) == 0
    assert stored(run) is None


def test_scores_of_a_split(fitted, tmp_path, capsys):
    assert command.main(["scores", str(fitted), "--batch_size=8", f"--out={tmp_path / 's.csv'}"]) == 0
    assert command.main(["scores", str(fitted), "--batch_size=8", f"--out={tmp_path / 's.npz'}"]) == 0
    with np.load(tmp_path / "s.npz") as arrays:
        arrays = dict(arrays)
    assert arrays["class_names"].tolist() == CLASSES
    assert Path(arrays["files"][3]).name == "=1+1.png"
    assert all(Path(path).exists() for path in arrays["files"])
    np.testing.assert_array_equal(arrays["thresholds"], stored(fitted).of("average", COMBINED))
    classifier = cfmlc_jax.load(fitted, batch_size=8)
    expected = [each.probabilities for each in classifier.predict([str(path) for path in arrays["files"]])]
    np.testing.assert_allclose(arrays["scores"], expected, atol=2e-6)
    with (tmp_path / "s.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header == ["file", *(f"label:{name}" for name in CLASSES), *(f"score:{name}" for name in CLASSES)]
    assert [row[0] for row in rows] == arrays["files"].tolist()  # a full path begins with no sign
    np.testing.assert_array_equal(np.array([row[1:4] for row in rows], int), arrays["labels"])
    np.testing.assert_allclose(np.array([row[4:] for row in rows], float), arrays["scores"], rtol=1e-6)


@pytest.mark.parametrize("sign", ["=", "+", "-", "@", "\t", "\r"])
def test_no_cell_is_a_formula(sign):
    one = np.ones((1, 1))
    scored = scores_file.ScoredSplit([f"{sign}cmd.png"], [f"{sign}x"], one.astype(np.uint8), one, None)
    for row in csv.reader(scores_file.as_csv(scored).splitlines()):
        assert not row[0].startswith(("=", "+", "-", "@", "\t", "\r"))
        assert all(cell[0] in "fls'01\\" for cell in row)  # a tab is written as its escape sequence


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["scores", "RUN", "--out=scores.parquet"], "ends with neither of .csv, .npz"),
        (["scores", "RUN", "--out=s.csv", "--prediction=patch"], "without patches; give"),
        (["scores", "RUN", "--out=s.csv", "--prediction=tde_feature_0.5"], "without a mean feature"),
        (["thresholds", "RUN", "--prediction=tde_pivot_0.5"], "without patches; give"),
        (["scores", "RUN", "--out=s.csv", "--prediction=sum"], "'sum' is not the name of a prediction"),
        (["scores", "RUN", "--out=s.csv", "--split=test"], "test"),
        (["scores", "RUN", "--out=s.csv", "--root=nowhere"], "nowhere"),
        (["thresholds", "RUN", "--precision=1.5"], "is not a precision above 0 and at most 1"),
        (["thresholds", "RUN", "--rule=guess"], "guess"),
        (["thresholds", "nowhere"], "nowhere"),
    ],
)  # fmt: skip
def test_a_user_error_is_one_line(run, monkeypatch, tmp_path, capsys, arguments, words):
    monkeypatch.chdir(tmp_path)
    assert command.main([str(run) if word == "RUN" else word for word in arguments]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert len(err.splitlines()) == 1
    assert words in err
    assert list(tmp_path.iterdir()) == []


def test_thresholds_of_a_file(fitted, tmp_path, capsys):
    ours = stored(fitted).to_json()
    good, other = tmp_path / "good.json", tmp_path / "other.json"
    (scored,) = cfmlc_jax.load(fitted, batch_size=8).predict(photos(fitted)[:1])
    # Of these the second class alone is exceeded, by little.
    values = (scored.probabilities + np.array([0.01, -0.01, 0.01])).tolist()
    good.write_text(json.dumps(ours | {"thresholds": {"average": {"combined": values}}}))
    other.write_text(json.dumps(ours | {"class_names": ["cat", "dog", "eft"]}))
    flags = [f"--checkpoint={fitted}", "--format=jsonl", "--batch_size=8", photos(fitted)[0]]
    assert predict.main([*flags, f"--thresholds={good}"]) == 0
    listed = json.loads(capsys.readouterr().out)["labels"]
    assert [label["class"] for label in listed] == CLASSES[1:2]
    for more, words in (
        ([f"--thresholds={other}"], "has thresholds of other classes"),
        ([f"--thresholds={tmp_path / 'gone.json'}"], "is missing"),
        ([f"--thresholds={good}", "--prediction=whole"], "has no thresholds of 'average' for prediction 'whole'"),
        ([f"--thresholds={good}", "--top=2"], "omit it, or --threshold and --top"),
    ):  # fmt: skip
        assert predict.main([*flags, *more]) == 1
        err = capsys.readouterr().err
        assert words in err
        assert len(err.splitlines()) == 1
    path = fitted / "checkpoints" / "4" / thresholds.FILE
    path.write_text(other.read_text())
    with pytest.raises(InputError, match="class 0 is 'cat' instead of"):
        cfmlc_jax.load(fitted, batch_size=8)


def test_a_single_label_configuration_has_none():
    config = configs.default()
    config.task, config.loss.name, config.method = "single_label", "cross_entropy", "whole"
    config.effect.kinds = ()
    config.evaluate.thresholds = "f1"
    with pytest.raises(InputError, match="is for task 'multi_label'"):
        configs.validate(config)


def snippets():
    return re.findall(r"^```python\n(.*?)^```", DOCUMENT.read_text(encoding="utf-8"), re.M | re.S)


def test_the_documented_lines_for_fiftyone(fitted, tmp_path, monkeypatch):
    """With the three classes of FiftyOne that they use, as its documentation describes them."""
    assert command.main(["scores", str(fitted), "--batch_size=8", f"--out={tmp_path / 'scores.npz'}"]) == 0
    monkeypatch.chdir(tmp_path)
    added = []

    class Dataset:
        def __init__(self, name):
            self.name = name

        def add_samples(self, samples):
            added.extend(samples)

    class Sample(dict):
        def __init__(self, filepath):
            super().__init__(filepath=filepath)

    fake = types.SimpleNamespace(
        Dataset=Dataset, Sample=Sample, Classification=dict, Classifications=lambda classifications: classifications
    )  # fmt: skip
    monkeypatch.setitem(sys.modules, "fiftyone", fake)
    (block,) = (text for text in snippets() if "fiftyone" in text)
    exec(block, {})
    assert len(added) == 16
    assert [each["label"] for each in added[1]["ground_truth"]] == ["dog"]
    classifier = cfmlc_jax.load(fitted, batch_size=8)
    expected = [each.present() for each in classifier.predict([sample["filepath"] for sample in added])]
    assert any(expected)
    for sample, present in zip(added, expected, strict=True):
        shown = {each["label"]: each["confidence"] for each in sample["predictions"]}
        assert shown == pytest.approx(dict(present), abs=2e-6)
