"""One label an image from the command line: training, effects, reports, second stages, predictions, mistakes."""

import itertools
import json
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import main
from cfmlc_jax.data.sources.long_tailed_digits import LongTailedDigits
from cfmlc_jax.engine import hooks
from cfmlc_jax.metrics import shots
from cfmlc_jax.predict import __main__ as predict

DIGITS = Path(__file__).parent.parent / "configs" / "longtail_digits.py"
SMALL = (
    "--config.data.longtail.largest=24",
    "--config.data.longtail.ratio=0.25",
    "--config.data.longtail.num_test=8",
    "--config.model.name=resnet_small",
    "--config.train.batch_size=16",
    "--config.train.epochs=2",
    "--config.optim.sgd.milestones=()",
    "--config.train.log_every=4",
    "--config.evaluate.batch_size=80",
)
COUNTS = [24, 20, 17, 15, 12, 11, 9, 8, 6, 6]
STEPS = 2 * (sum(COUNTS) // 16)


def config(variant=""):
    return f"--config={DIGITS}:{variant}" if variant else f"--config={DIGITS}"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Trains a variant, once for all tests: its workdir."""
    folder, done = tmp_path_factory.mktemp("runs"), set()

    def train(variant=""):
        workdir = folder / (variant or "deconfound")
        if variant not in done:
            with pytest.MonkeyPatch.context() as patch:
                arguments = ["main", config(variant), *SMALL, f"--workdir={workdir}"]
                patch.setattr(sys, "argv", arguments)
                assert main.main() == 0
            done.add(variant)
        return workdir

    return train


def results(workdir):
    return json.loads((workdir / "report" / "results.json").read_text())


def arrays(workdir, item="model"):
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        kinds = {"model": ocp.args.StandardRestore(), "training": ocp.args.StandardRestore()}
        return checkpointer.restore(
            workdir / "checkpoints" / str(STEPS), args=ocp.args.Composite(**{item: kinds[item]})
        )[item]


def test_a_run_has_accuracies_effects_and_a_report(trained):
    workdir = trained()
    average = results(workdir)["test"]["average"]
    assert set(average["metrics"]) == {"whole", "tde_feature_0.5", "tde_feature_1", "tde_feature_1.5"}
    with np.load(workdir / "report" / "scores_test_average.npz") as scores:
        scores = dict(scores)
    effect = scores["combined"] - 1.5 * scores["null_feature"]
    expected = shots.shots(effect.argmax(axis=1), scores["labels"].argmax(axis=1), COUNTS)
    assert average["metrics"]["tde_feature_1.5"] == pytest.approx(expected, nan_ok=True)
    assert average["rule_of_thumb"]["alpha"] == pytest.approx(
        1 / average["rule_of_thumb"]["mean_cosine"], rel=1e-3
    )
    assert average["rule_of_thumb"]["alpha"] > 1
    page = (workdir / "report" / "index.html").read_text(encoding="utf-8")
    for words in (
        "Accuracy by strength of the effect against the mean feature",
        "Accuracy by class on test",
        "few shots",
    ):
        assert words in page
    for words in ("Context", "Precision, recall", "Where the model looks"):
        assert words not in page
    table = (workdir / "report" / "per_class_test_average.csv").read_text().splitlines()
    assert [int(line.split(",")[1]) for line in table[1:]] == COUNTS


def test_the_log_has_accuracies_and_the_rates_of_sgd(trained):
    lines = [json.loads(line) for line in (trained() / "metrics.jsonl").read_text().splitlines()]
    ends = [line for line in lines if "epoch" in line]
    assert [line["epoch"] for line in ends] == [1, 2]
    assert {"val/weights/top1", "val/average/few", "val/average/macro_F1"} <= ends[0].keys()
    assert "val/weights/mAP_voc" not in ends[0]
    # A warm-up of three epochs from a third of 0.1: the second epoch's rate is 0.1·(1/9 + 2/3).
    logged = [line for line in lines if "train/lr" in line]
    assert logged[-1]["train/lr"] == pytest.approx(0.1 * (1 / 9 + 2 / 3))
    assert logged[-1]["train/momentum"] == pytest.approx(0.9)


def test_a_checkpoint_alone_gives_other_strengths(trained, command, tmp_path):
    shutil.copytree(checkpoints.find(trained()), tmp_path / "mine")
    code, out, err = command(
        "--mode=evaluate", "--checkpoint=mine", config(), *SMALL, "--config.effect.alphas=(0.25,)", "--workdir=again"
    )  # fmt: skip
    assert code == 0, err
    # The numbers of training images came with the checkpoint.
    assert "train:" not in out
    again, before = results(tmp_path / "again"), results(trained())
    assert set(again["test"]["average"]["metrics"]) == {"whole", "tde_feature_0.25"}
    assert again["test"]["average"]["metrics"]["whole"] == pytest.approx(
        before["test"]["average"]["metrics"]["whole"], nan_ok=True
    )
    assert "alpha·cos is 1 at alpha" in out


def test_predict_gives_one_class(trained, tmp_path, capsys):
    record = LongTailedDigits("test", num_test=8)[0]
    Image.fromarray(record["image"]).resize((50, 40)).save(tmp_path / "digit.png")
    arguments = [str(tmp_path / "digit.png"), f"--checkpoint={trained()}", "--format=jsonl"]
    assert predict.main([*arguments, "--top=10"]) == 0
    every = json.loads(capsys.readouterr().out)["labels"]
    assert len(every) == 10
    assert sum(label["probability"] for label in every) == pytest.approx(1, abs=1e-5)
    assert predict.main(arguments) == 0
    (one,) = json.loads(capsys.readouterr().out)["labels"]
    assert one == every[0]
    assert predict.main([*arguments, "--prediction=tde_feature_1.5"]) == 0
    (effect,) = json.loads(capsys.readouterr().out)["labels"]
    assert effect["probability"] != one["probability"]


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(trained, command, tmp_path, monkeypatch):
    requested, asked = hooks.Preemption.requested, itertools.count(1)
    monkeypatch.setattr(hooks.Preemption, "requested", lambda self: next(asked) == STEPS // 2 - 1)
    arguments = (config("plain"), *SMALL, f"--workdir={tmp_path / 'run'}")
    code, _, err = command(*arguments)
    assert code == main.ENDED_BY_SIGTERM, err
    monkeypatch.setattr(hooks.Preemption, "requested", requested)
    code, out, err = command(*arguments)
    assert code == 0, err
    assert f"resuming at step {STEPS // 2 - 1} of {STEPS}" in out
    for item in ("model", "training"):
        jax.tree.map(
            np.testing.assert_array_equal, arrays(tmp_path / "run", item), arrays(trained("plain"), item)
        )


def test_the_second_stage_trains_scales_only(trained, command, tmp_path):
    plain = trained("plain")
    arguments = (f"--config.init_from={plain}", f"--workdir={tmp_path / 'run'}")
    code, out, err = command(config("lws"), *SMALL, *arguments)
    assert code == 0, err
    assert "backbone and the weights of the head" in out
    before = checkpoints.find(plain)
    after = checkpoints.find(tmp_path / "run")
    first, second = (
        checkpoints.read_part(path, checkpoints.model_shapes(path))["variables"] for path in (before, after)
    )
    jax.tree.map(np.testing.assert_array_equal, first["params"]["backbone"], second["params"]["backbone"])
    head = second["params"]["head"]["whole"]
    np.testing.assert_array_equal(head["kernel"], first["params"]["head"]["whole"]["kernel"])
    assert not head["bias"].any()
    assert (head["scales"] != 1).all()
    drift = second["batch_stats"]["backbone"]["bn1"]["mean"] - first["batch_stats"]["backbone"]["bn1"]["mean"]
    assert np.abs(drift).max() > 0
    # Balanced classes: as many images of each as of the commonest.
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "epoch" in line] == [15, 30]


def test_tau_norm_needs_no_training(trained, command, tmp_path):
    code, _, err = command(
        "--mode=evaluate", f"--checkpoint={trained('plain')}", config("tau"), *SMALL, "--workdir=run"
    )
    assert code == 0, err
    with (
        np.load(tmp_path / "run" / "report" / "scores_test_average.npz") as even,
        np.load(trained("plain") / "report" / "scores_test_average.npz") as plain,
    ):
        path = checkpoints.find(trained("plain"))
        kernel = checkpoints.read_part(path, checkpoints.model_shapes(path))["average"]["params"]["head"][
            "whole"
        ]["kernel"]
        lengths = np.linalg.norm(kernel, axis=0)
        np.testing.assert_allclose(even["whole"], plain["whole"] / lengths, rtol=1e-4, atol=1e-4)


def lists(root, *, train="a.png 0\nb.png 1\n", val="c.png 1\n"):
    root.mkdir()
    for name in "abc":
        Image.new("RGB", (32, 32)).save(root / f"{name}.png")
    for split, text in (("train", train), ("val", val), ("test", val)):
        (root / f"ImageNet_LT_{split}.txt").write_text(text)


def damaged_archive(root):
    root.mkdir()
    (root / "cifar-10-python.tar.gz").write_bytes(b"\x1f\x8b not a tar")


PREPARATIONS = {
    "lists with a missing image": lambda root: lists(root, train="a.png 0\nnowhere.png 1\n"),
    "lists with a bad label": lambda root: lists(root, val="c.png 7\n"),
    "a damaged archive": damaged_archive,
}
IMAGES = ("--config.data.source=imagenet_lt", "--config.data.root=data")
CIFAR = ("--config.data.source=cifar10_lt", "--config.data.root=data")


@pytest.mark.parametrize(
    ("prepare", "arguments", "words"),
    [
        (None, ["--config.data.longtail.ratio=0.0"], ["data.longtail.ratio is 0.0", "at most 1"]),
        (None, ["--config.data.longtail.ratio=2.0"], ["data.longtail.ratio is 2.0"]),
        (None, ["--config.data.longtail.ratio=0.01"], ["class 7 has no training image", "0.042"]),
        (None, ["--config.effect.alphas=(-0.5,)"], ["effect.alphas has -0.5", "at least 0"]),
        (None, ["--config.model.cosine.num_heads=3"], ["128 features cannot be split into 3 heads"]),
        (None, ["--config.model.cosine.tau=0.0"], ["model.cosine.tau is 0.0; it must be above 0"]),
        (None, ["--config.model.head=dot_product"], ["effect.kinds has 'feature'", "causal_norm"]),
        (None, ["--config.optim.sgd.milestones=(9,4)"], ["optim.sgd.milestones (9, 4) must ascend"]),
        (None, ["--config.model.dot_product.tau_norm=1.0"], ["tau_norm is for model.head 'dot_product'"]),
        (None, ["--config.method=pat_i"], ["task 'single_label' is for whole images", "'whole'"]),
        (None, ["--config.model.frozen=('head/(',)"], ["model.frozen has 'head/('", "not a regular expression"]),
        (None, ["--config.model.frozen=('neck/.*',)"], ["no parameter matches 'neck/.*'"]),
        (None, ["--config.data.source=scenes"], ["train: ", "do not have exactly one label", "'asymmetric'"]),
        (None, ["--config.views.image_size=48"], ["32 x 32 pixels, wanted 48 x 48"]),
        (
            None,
            ["--config.optim.name=adamw_one_cycle", "--config.model.cosine.momentum=schedule"],
            ["momentum 'schedule' follows the learning rate of optim.name 'sgd'"],
        ),
        ("lists with a missing image", IMAGES, ["ImageNet_LT_train.txt", "nowhere.png"]),
        ("lists with a bad label", IMAGES, ["ImageNet_LT_val.txt", "line 1", "7"]),
        ("a damaged archive", CIFAR, ["cifar-10-python.tar.gz", "bytes"]),
    ],
)  # fmt: skip
def test_a_user_error_is_one_line(command, tmp_path, prepare, arguments, words):
    if prepare:
        PREPARATIONS[prepare](tmp_path / "data")
    code, _, err = command(config(), *SMALL, *arguments)
    assert code == 1
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    for word in words:
        assert word in last


def test_a_second_stage_without_a_first(command, trained):
    code, _, err = command(config("lws"), *SMALL, "--config.init_from=")
    assert code == 1
    assert "model.head 'lws' scales the weights of a trained classifier; set config.init_from" in err
    code, _, err = command(config("lws"), *SMALL, "--config.init_from=nowhere")
    assert code == 1
    assert "nowhere is not a checkpoint" in err
