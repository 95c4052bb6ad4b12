"""The command as a user meets it: errors of one line, and a run from start to report."""

import itertools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from PIL import Image

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import cli, lock, main
from cfmlc_jax import config as configs
from cfmlc_jax.classify import build
from cfmlc_jax.engine import hooks
from cfmlc_jax.engine import run as engine_run
from cfmlc_jax.errors import InputError, RunError
from cfmlc_jax.export import __main__ as export

REPOSITORY = Path(__file__).parent.parent
TINY = f"--config={Path(__file__).parent / 'configs' / 'tiny.py'}"
COCO = f"--config={REPOSITORY / 'configs' / 'coco.py'}"
TABLE = f"--config={REPOSITORY / 'configs' / 'own_images.py'}"


def assert_error(result, *words):
    code, _, err = result
    assert code == 1
    last = err.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert "Traceback" not in err
    for word in words:
        assert word in last


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--config is missing", "FILE.py"]),
        (["--config=nowhere.py"], ["--config cannot be read", "nowhere.py"]),
        ([TINY, "--config.optim.learning_rat=1"], ["no field optim.learning_rat", "optim.learning_rate"]),
        ([TINY, "--config.optimm.learning_rate=1"], ["no field optimm.learning_rate", "optim.learning_rate"]),
        ([TINY, "--config.optim.learning_rate=fast"], ["learning_rate=fast", "could not convert"]),
        ([TINY, "--config.train.epochs=1.5"], ["train.epochs=1.5", "invalid literal for int"]),
        ([TINY, "--mode=tain"], ["--mode=tain", "train|evaluate"]),
        ([TINY, "--modus=train"], ["modus"]),
        ([TINY, "train"], ["unexpected argument 'train'"]),
        ([TINY, "--config.model.name=resnet19"], ["resnet19", "did you mean", "resnet18"]),
        ([TINY, "--config.views.image_size=36"], ["36 is not divisible by 16", "try 32 or 48"]),
        ([TINY, "--config.views.image_size=33"], ["33 is not divisible by patches.grids 2", "32 or 34"]),
        ([TINY, "--config.views.image_size=-32"], ["views.image_size is -32"]),
        ([TINY, "--config.train.batch_size=0"], ["train.batch_size is 0"]),
        ([TINY, "--config.train.batch_size=12"], ["12 is not divisible by the 8 devices; try 8 or 16"]),
        ([TINY, "--config.evaluate.batch_size=4"], ["evaluate.batch_size 4", "try 8"]),
        ([TINY, "--config.train.batch_size=200"], ["160 images", "fewer than config.train.batch_size 200"]),
        ([TINY, "--config.mesh.fsdp=3"], ["mesh.fsdp 3 does not divide the 8 devices", "1, 2, 4, 8"]),
        ([TINY, "--config.data.val_split=vall"], ["split 'vall' does not exist", "'val'"]),
        ([COCO], ["data root data/coco is not a folder", "$CFMLC_DATA", "python -m cfmlc_jax.data coco"]),
        (["--mode=evaluate"], ["needs --checkpoint, --workdir or --config"]),
        (["--mode=evaluate", "--checkpoint=nowhere"], ["nowhere is not a checkpoint"]),
        (["--mode=evaluate", TINY], ["is not a checkpoint"]),
        (["--mode=evaluate", "--checkpoint="], ["--checkpoint is empty"]),
        (["--mode=evaluate", "--checkpoint=az://bucket/run"], ["--checkpoint 'az://bucket/run' is an address"]),
        (["--mode=evaluate", "--checkpoint=a\\b"], ["has a backslash", "rename the folder"]),
        ([TINY, "--config.train=3"], ["--config.train=3", "is not a dict"]),
        ([TINY, "--config.train.epochs=3\nx"], ["train.epochs=3 x", "invalid literal"]),
        ([TINY, "--profile=110:100"], ["--profile=110:100 has no step in it", "as in 100:110"]),
        ([TINY, "--profile=500:510"], ["--profile=500:510 asks for steps 501 to 510", "the run has 40"]),
        (["--mode=evaluate", "--checkpoint=a", "--profile=1:2"], ["--profile is for --mode=train"]),
        ([TINY, "--config.report.tensorboard=True"], ["is now config.report.writers", "('jsonl', 'tensorboard')"]),
        ([TINY, "--config.report.writers=('nowhere:A',)"], ["has 'nowhere:A', which cannot be imported"]),
        ([TINY, "--config.seed=-1"], ["config.seed is -1; it must be at least 0"]),
        ([TINY, "--config.data.test_splits=()"], ["config.data.test_splits is empty"]),
        ([TINY, "--config.data.test_splits=('train',)"], ["has 'train', which is the training split"]),
        ([TINY, "--config.optim.ema_decay=1"], ["config.optim.ema_decay is 1"]),
        ([TINY, "--config.data.root=hf://bucket"], ["config.data.root 'hf://bucket' is an address"]),
        ([TINY, "--config.data.root=" + 300 * "x"], ["config.data.root", "cannot be used", "File name too long"]),
        ([TINY, "--config.data.root=~nobody-at-all/coco"], ["home of an unknown user", "give the full path"]),
        ([TINY, "--config.init_from=nowhere"], ["config.init_from: ", "nowhere is not a checkpoint"]),
        ([TINY, "--config.model.frozen=('.*',)"], ["config.model.frozen ('.*',) leaves no parameter to train"]),
        ([TINY, "--config.model.frozen=('neck',)"], ["no parameter matches 'neck'"]),
        (
            [TINY, "--config.patches.source=map", "--config.patches.map=layer7", "--config.effect.kinds=('whole',)"],
            ["'layer7' is not a map", "layer1"],
        ),
        ([TINY, "--config.train.epochs=1000000", "--config.data.scenes.num_train=100000"], ["more than 2147483647"]),
        *(
            ([TINY, f"--workdir={workdir}"], words)
            for workdir, words in (
                ("", ["--workdir is empty"]),
                ("exp[lr=0.1]", ["exp[lr=0.1]' has '[' in it", "could not be read", "choose a path of printable text"]),
                ("sweep*/a", ["has '*' in it"]),
                ("what?", ["has '?' in it"]),
                ("a\\b", ["has '\\\\' in it"]),
                ("az://bucket/run", ["--workdir 'az://bucket/run' is an address", "an address in a bucket, gs:// or s3://"]),
                ("file:///runs/a", ["'file:///runs/a' is an address"]),
                ("two\nlines", ["has the character '\\n'", "rename it"]),
                ("caf\udce9", ["has the character"]),
                ("~nobody-at-all/run", ["home of an unknown user"]),
                (300 * "x", ["File name too long"]),
            )
        ),
    ],
)  # fmt: skip
def test_a_user_error_is_one_line(command, tmp_path, arguments, words):
    assert_error(command(*arguments), *words)
    # What cannot be trained leaves no folder behind.
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "    raise ValueError('no such size')",
            ["line 2 (raise ValueError('no such size'))", "no such size"],
        ),
        ("    raise ValueError('two\\nlines')", ["mine.py, line 2 (", "ValueError: two lines"]),
        ("    return 1 / 0", ["mine.py, line 2 (return 1 / 0): ZeroDivisionError: division by zero"]),
        ("    import no_such_module", ["mine.py, line 2 (", "No module named 'no_such_module'"]),
        ("    return dict(a=1)['b']", ["mine.py, line 2 (", "KeyError: 'b'"]),
        ("    b'\\xff'.decode()", ["mine.py, line 2 (", "UnicodeDecodeError: "]),
        ("    open('nowhere')", ["No such file or directory: 'nowhere'"]),
        ("    return None", ["of type NoneType; start from cfmlc_jax.config.default() and return it"]),
        ("    return {'seed': 1}", ["of type dict; start from cfmlc_jax.config.default()"]),
        (
            "    config = configs.default()\n    config.train.epochs = '3'",
            ["mine.py, line 3 (config.train.epochs = '3'): epochs must be int, not str"],
        ),
        (
            "    config = configs.default()\n    config.train = 3",
            ["mine.py, line 3 (config.train = 3): train must be ConfigDict, not int"],
        ),
        (
            "    config = configs.default()\n    config.train.epoch = 3\n    return config",
            ["config.train.epoch is not a field", "did you mean train.epochs?"],
        ),
    ],
)
def test_a_configuration_file_that_raises(command, tmp_path, text, words):
    head = "def get_config(configs=__import__('cfmlc_jax.config').config):"
    (tmp_path / "mine.py").write_text(f"{head}\n{text}\n")
    assert_error(command("--config=mine.py"), *words)


def test_a_file_that_is_not_a_configuration(command, tmp_path):
    (tmp_path / "broken.py").write_text("def get_config(:\n")
    assert_error(command("--config=broken.py"), "--config cannot be read", "broken.py, line 1")
    (tmp_path / "empty.py").write_text("")
    sys.modules.pop("config_config")  # ml_collections' name of each, which keeps what the last one defined
    assert_error(command("--config", "empty.py"), "--config cannot be used", "no attribute 'get_config'")
    (tmp_path / "one.py").write_text("def get_config():\n    pass\n")
    assert_error(command("--config=one.py:a"), "--config cannot be used", "takes 0 positional arguments")


def test_a_workdir_that_cannot_be_written(command, tmp_path):
    (tmp_path / "file").write_text("")
    assert_error(command(TINY, "--workdir=file/run"), "file/run/report cannot be written", "--workdir")


def test_a_workdir_of_another_configuration_or_damaged(command, tmp_path):
    (tmp_path / "run" / "checkpoints" / "10").mkdir(parents=True)
    fields = {"optim": {"learning_rate": 7.0}}
    (tmp_path / "run" / "config.json").write_text(json.dumps(fields))
    assert_error(
        command(TINY, "--workdir=run"),
        "is a run of another configuration",
        "optim.learning_rate: 7.0 -> 0.001",
    )
    assert json.loads((tmp_path / "run" / "config.json").read_text()) == fields
    for text in (b'{"optim": ', b"[]", b"\xff", b"3"):
        (tmp_path / "run" / "config.json").write_bytes(text)
        assert_error(command(TINY, "--workdir=run"), "config.json is damaged")


def parsed(*arguments):
    return main.parse(main.define_flags(), ["main", *arguments])


def test_fields_of_the_checkpoint_to_evaluate(tmp_path):
    """Without --config they change its own configuration."""
    write_start(tmp_path / "start")
    stored = configs.from_json(checkpoints.read_meta(tmp_path / "start")["config"])
    evaluate = ("--mode=evaluate", "--checkpoint", str(tmp_path / "start"))
    assert parsed(*evaluate) is None
    config = parsed(*evaluate, "--config.data.root=elsewhere", "--config.effect.alphas=(0.1,2.0)")
    changes = {"data.root": "elsewhere", "effect.alphas": (0.1, 2.0)}
    assert configs.to_json(config) == configs.to_json(configs.replaced(stored, changes))
    with pytest.raises(InputError, match=r"no field effect\.alpha; .*effect\.alphas"):
        parsed(*evaluate, "--config.effect.alpha=1")
    with pytest.raises(InputError, match="nowhere is not a checkpoint"):
        parsed("--mode=evaluate", "--checkpoint=nowhere", "--config.data.root=elsewhere")


def test_a_moved_checkpoint_does_not_replace_the_report_of_a_run(command, tmp_path):
    write_start(tmp_path / "coco")
    (tmp_path / "runs" / "coco" / "checkpoints" / "40").mkdir(parents=True)
    assert_error(
        command("--mode=evaluate", "--checkpoint=coco"),
        "coco is in no run, and its report would replace that of the run",
        "add --workdir=DIR",
    )


def test_a_failed_start_leaves_what_was_there_before(command, tmp_path):
    """No folder that looks like a run; what another program wrote stays, and so does a run's claim."""
    assert_error(command(COCO, "--workdir=runs/mine"), "data root")
    assert_error(command("--mode=evaluate", "--checkpoint=nowhere", "--workdir=new"), "nowhere is not")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "run" / "checkpoints").mkdir(parents=True)
    (tmp_path / "run" / "log.txt").write_text("of a scheduler")
    # A run that never got to a checkpoint has no claim to its workdir.
    (tmp_path / "run" / "config.json").write_text("{}")
    assert_error(command(TINY, "--workdir=run", "--config.data.val_split=vall"), "split 'vall'")
    assert {path.name for path in (tmp_path / "run").iterdir()} == {"checkpoints", "log.txt"}


def test_a_short_run_is_logged_and_resumes_if_init_from_is_spelled_differently(command, tmp_path):
    """Two steps an epoch and a log every 50; `init_from` relative, then absolute."""
    write_start(tmp_path / "start")
    flags = (TINY, *SHORT, "--config.optim.sgd.momentum=0.5", "--workdir=run")
    code, out, err = command(*flags, "--config.init_from=start/")
    assert code == 0, err
    assert "set, but of no use to this run: optim.sgd.momentum" in out
    shown = err.splitlines()
    assert shown[:2] == ["reading the first of 4 batches", "compiling the training step"]
    assert re.match(r"compiled in \d+\.\d s( \(from the cache\))?; the first step took \d+\.\d s", shown[2])
    log = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [line["step"] for line in map(json.loads, log) if "train/loss" in line] == [2, 4]
    assert_error(command(*flags, "--config.init_from=run"), "another configuration", "init_from")
    # Its checkpoints say whose they are, too.
    (tmp_path / "run" / "config.json").unlink()
    other = (*flags, "--config.init_from=start/", "--config.seed=3")
    assert_error(command(*other), "is a run of another configuration", "seed: 0 -> 3")
    # A resumed run does not need its start any more.
    shutil.rmtree(tmp_path / "start")
    code, out, err = command(*flags, f"--config.init_from={tmp_path / 'start'}")
    assert code == 0, err
    assert "resuming at step 4 of 4" in out


def write_start(path):
    """A checkpoint of fresh weights that a run of SHORT may begin with."""
    config = main.parse(main.define_flags(), ["main", TINY])
    config.unlock()
    config.method, config.effect.kinds = "whole", ()
    names = [f"digit {digit}" for digit in range(10)]
    model = build.initial(config, build.create(config, len(names)))
    meta = {"config": configs.to_json(config), "class_names": names, "num_classes": len(names)}
    checkpoints.write(path, model=model, meta=meta)


SHORT = (
    "--config.method=whole",
    "--config.data.scenes.num_train=16",
    "--config.data.scenes.num_test=8",
    "--config.data.test_splits=('val',)",
    "--config.effect.kinds=()",
    "--config.evaluate.batch_size=8",
    "--config.train.log_every=50",
)


@pytest.fixture
def own_images(tmp_path):
    """Sixteen photos a split, named in train.csv and val.csv."""
    root = tmp_path / "photos"
    root.mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        lines = []
        for i in range(16):
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(root / f"{split}{i}.jpg")
            lines.append(f"{split}{i}.jpg,{'cat' if i % 2 else 'cat;dog'}")
        (root / f"{split}.csv").write_text("\n".join(lines) + "\n")
    return root


def damage(kind, root):
    photo = root / "train3.jpg"
    if kind == "missing":
        photo.unlink()
    elif kind == "empty":
        photo.write_bytes(b"")
    elif kind == "truncated":
        photo.write_bytes(photo.read_bytes()[:400])
    elif kind == "not an image":
        photo.write_text("hello")
    elif kind == "bad line":
        (root / "train.csv").write_text("train0.jpg,cat\ntrain1.jpg,cat,dog,7\n")
    elif kind == "unknown label":
        with (root / "val.csv").open("a") as file:
            file.write("train0.jpg,dogg\n")
    elif kind == "no images":
        (root / "val.csv").write_text("")
    elif kind == "in both":
        with (root / "val.csv").open("a") as file:
            file.write("train0.jpg,dog\n")
    elif kind == "no labels":
        (root / "val.csv").write_text("val0.jpg,\n")


FAST = [
    "--config.method=whole",
    "--config.effect.kinds=()",
    "--config.model.name=resnet_small",
    "--config.views.image_size=32",
    "--config.train.batch_size=8",
    "--config.evaluate.batch_size=8",
    "--config.train.epochs=1",
]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("missing", ["train3.jpg", "line 4"]),
        ("empty", ["train3.jpg", "0 bytes"]),
        ("truncated", ["train3.jpg", "cannot be decoded (Truncated File Read; the file has 400 bytes)"]),
        ("not an image", ["train3.jpg", "not an image"]),
        ("bad line", ["train.csv", "line 2"]),
        ("unknown label", ["val.csv", "line 17", "'dogg'", "'dog'"]),
        ("no images", ["val.csv", "no image"]),
        ("in both", ["train0.jpg"]),
        ("no labels", ["val: no image has any of the classes"]),
    ],
)
def test_data_that_cannot_be_used(command, own_images, kind, words):
    damage(kind, own_images)
    assert_error(command(TABLE, f"--config.data.root={own_images}", *FAST), *words)


def test_train_then_evaluate_again(command, tmp_path, monkeypatch):
    fitting = (TINY, "--config.evaluate.thresholds=f1")
    code, out, err = command(*fitting)
    assert code == 0, err
    assert "positives per class" in out
    assert "ETA" in err
    run = tmp_path / "runs" / "tiny"
    assert {path.name for path in run.iterdir()} == {
        "config.json", "metrics.jsonl", "parameters.txt", "checkpoints", "report",
    }  # fmt: skip
    assert "resnet_small: 305,630 parameters, 1.2 MB (parameters.txt lists them)" in out
    results = json.loads((run / "report" / "results.json").read_text())
    assert set(results) == {"test_iid", "test_conflict"}
    # The last line is where to look.
    assert out.splitlines()[-1] == f"report {run / 'report' / 'index.html'}"
    assert "Best and worst images" in (run / "report" / "index.html").read_text(encoding="utf-8")
    predictions = {"whole", "patch", "combined", "tde_whole_0.5", "tde_pivot_0.5"}
    assert set(results["test_iid"]["average"]["metrics"]) == predictions
    assert set(results["test_iid"]["average"]["thresholds"]["combined"]["0.50"]) == {
        "CP", "CR", "CF1", "OP", "OR", "OF1",
    }  # fmt: skip
    (kept,) = {path.parent for path in run.rglob("checkpoints/*/thresholds.json")}
    assert f"evaluating {kept.name}, the best step" in out
    assert "thresholds: best F1 on val, 40 images" in out
    decided = results["test_iid"]["average"]["decisions"]
    assert (decided["title"], decided["split"]) == ("best F1 on val", "val")
    assert set(decided["predictions"]) == predictions
    table = (run / "report" / "per_class_test_iid_average.csv").read_text().splitlines()
    assert len(table) == 11
    with np.load(run / "report" / "scores_test_iid_weights.npz") as scores:
        assert scores["combined"].shape == scores["labels"].shape == (40, 10)
        assert (scores["attention"].shape, scores["attention"].dtype) == ((40, 4, 10), np.float16)
    # 40 steps of 20 an epoch, a log every 3.
    steps = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in steps if "train/loss" in line] == list(range(3, 40, 3))
    assert [line["epoch"] for line in steps if "epoch" in line] == [1, 2]
    # It is finished: the same command only evaluates again.
    code, out, _ = command(*fitting)
    assert code == 0
    assert "resuming at step 40 of 40" in out
    assert json.loads((run / "report" / "results.json").read_text()) == results
    # It waits for another evaluation, unless it is asked to end.
    with lock.held(run / "report", "evaluating"), monkeypatch.context() as asked:
        asked.setattr(hooks.Preemption, "requested", lambda self: True)
        code, out, err = command(*fitting)
    assert code == 143, err
    assert out.splitlines()[-1].startswith(f"waiting: {run / 'report'} is in use by process")
    # A checkpoint alone, taken away from its run, is enough.
    shutil.move(kept, tmp_path / "my_model")
    arguments = ("--mode=evaluate", "--checkpoint=my_model", "--workdir=elsewhere")
    (tmp_path / "elsewhere" / "report").mkdir(parents=True)
    with lock.held(tmp_path / "elsewhere" / "report", "evaluating"):
        assert_error(command(*arguments), "elsewhere/report is in use", "evaluating")
    # A training that runs in the workdir does not matter.
    with lock.held(tmp_path / "elsewhere", "training"):
        code, out, err = command(*arguments)
    assert code == 0, err
    again = json.loads((tmp_path / "elsewhere" / "report" / "results.json").read_text())
    assert again["test_iid"]["average"]["decisions"] == decided
    assert (tmp_path / "elsewhere" / "report" / "results.md").exists()
    assert out.splitlines()[-1] == f"report {Path('elsewhere', 'report', 'index.html')}"
    # So is the folder of an export, which has its thresholds too.
    assert export.main(["my_model", "exported"]) == 0
    code, _, err = command("--mode=evaluate", "--checkpoint=exported")
    assert code == 0, err
    by_folder = json.loads((tmp_path / "runs" / "exported" / "report" / "results.json").read_text())
    for split, theirs in again.items():
        assert by_folder[split]["average"] == theirs["average"]
    # Another null and other strengths need no training; another model is refused.
    code, out, _ = command(
        "--mode=evaluate", TINY, "--checkpoint=my_model", "--config.effect.null=zeros", "--config.effect.alphas=(0.1,2.0)"
    )  # fmt: skip
    assert code == 0
    assert "tde_pivot_2" in out
    assert_error(
        command("--mode=evaluate", TINY, "--checkpoint=my_model", "--config.model.name=resnet18"),
        "is of another model",
        "'resnet_small' -> 'resnet18'",
    )


def test_a_run_does_not_resume_with_other_data(command, own_images, tmp_path, monkeypatch):
    monkeypatch.setattr(hooks.Preemption, "requested", lambda self: True)  # a step a run will do
    (own_images / "classes.txt").write_text("cat\ndog\n")
    arguments = (TABLE, *FAST, "--workdir=run")
    code, _, err = command(*arguments, f"--config.data.root={own_images}")
    assert code == 143, err
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").rglob("*")}
    train = (own_images / "train.csv").read_text()
    changes = {
        "classes in another order: dog (1 -> 0), cat (0 -> 1)": ("classes.txt", "dog\ncat\n"),
        "classes added: owl": ("classes.txt", "cat\ndog\nowl\n"),
        "train has 15 images, not 16": ("train.csv", train.partition("\n")[2]),
        "val has other labels": ("val.csv", (own_images / "val.csv").read_text().replace("cat;dog", "dog")),
    }
    for words, (name, text) in changes.items():
        before = (own_images / name).read_text()
        (own_images / name).write_text(text)
        result = command(*arguments, f"--config.data.root={own_images}")
        assert_error(result, "checkpoints/1 was trained on other data (", words, "another --workdir")
        (own_images / name).write_text(before)
    present = (tmp_path / "run" / "checkpoints").rglob("*")
    assert {path: path.stat().st_mtime_ns for path in present} == files
    assert not (tmp_path / "run" / "damaged").exists()
    # The same data in another place.
    code, out, err = command(*arguments, f"--config.data.root={own_images.rename(tmp_path / 'moved')}")
    assert code == 143, err
    assert "resuming at step 1 of 2" in out


def test_a_workdir_in_use(command, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    with lock.held(run, "training"):
        assert_error(
            command(TINY, "--workdir=run"), f"{run} is in use by process {os.getpid()} on ", "training"
        )
        assert not (run / "config.json").exists()


def test_a_start_that_fails_is_undone_while_no_other_run_may_begin(command, monkeypatch, tmp_path):
    def fail(*_):
        raise RunError("no more")

    remove, locked = main._remove_files_unless_begun, []

    def remove_locked(workdir, foreign):
        locked.append((workdir / lock.FILE).exists())
        remove(workdir, foreign)

    failing = main._SYSTEMS[configs.CLASSIFIER]._replace(train=fail)
    monkeypatch.setitem(main._SYSTEMS, configs.CLASSIFIER, failing)
    monkeypatch.setattr(main, "_remove_files_unless_begun", remove_locked)
    assert_error(command(TINY, "--workdir=sweep/run"), "no more")
    assert locked == [True]
    assert not (tmp_path / "sweep").exists()
    assert cli._in_contexts == []


def test_a_full_disk_and_too_little_memory(command, monkeypatch, tmp_path):
    finalize, saves = ocp.CompositeCheckpointHandler.finalize, itertools.count(1)

    def full(handler, folder):  # in the background, while the next steps are trained
        if next(saves) == 3:
            raise OSError(28, "No space left on device")
        finalize(handler, folder)

    monkeypatch.setattr(ocp.CompositeCheckpointHandler, "finalize", full)
    flags = ("--config.method=whole", "--config.effect.kinds=()", "--config.train.checkpoint_every=1")
    result = command(TINY, "--workdir=run", *flags)
    assert_error(
        result, "run/checkpoints/3 cannot be written (No space", "free space", "checkpoint 2 is intact"
    )
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "checkpoints", "config.json", "metrics.jsonl", "parameters.txt",
    ]  # fmt: skip

    def exhausted(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.\nHLO:\n…")

    monkeypatch.setattr(engine_run.TrainStep, "__call__", exhausted)
    result = command(TINY, "--workdir=run", *flags)
    assert_error(result, "training: out of memory", "allocating 9 bytes);", "train.batch_size (now 8)")


def test_tensorflow_is_not_imported():
    code = "import sys, cfmlc_jax.main; print('tensorflow' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], check=True, env=environment, capture_output=True)
    assert done.stdout.decode().strip() == "False"
