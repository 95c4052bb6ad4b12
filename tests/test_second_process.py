"""Of several processes the first alone writes, prints and chooses; the others do their share and leave no trace.

Each place that decides it, by itself, as the second process.
"""

import itertools
import shutil
from types import SimpleNamespace

import jax
import launchers
import numpy as np
import pytest

from cfmlc_jax import config as configs
from cfmlc_jax import lock, main, processes
from cfmlc_jax.checkpoint import Checkpoints
from cfmlc_jax.classify import decide, evaluate, finetune, scoring, train
from cfmlc_jax.config.workdir import claim
from cfmlc_jax.errors import InputError, RunError
from cfmlc_jax.results import thresholds
from cfmlc_jax.results.predictions import COMBINED
from cfmlc_jax.results.thresholds import Thresholds


@pytest.fixture
def second(monkeypatch):
    """Makes this process the second one, from the call on."""
    return lambda: monkeypatch.setattr(jax, "process_index", lambda: 1)


@pytest.fixture
def answered(monkeypatch):
    """Makes these the answers of the first process, from the call on; the last one stays."""

    def give(*answers):
        following = itertools.chain(answers, itertools.repeat(answers[-1]))
        monkeypatch.setattr(processes, "of_first", lambda action: next(following))

    return give


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")
    }


@pytest.fixture
def saved(tmp_path):
    """Four checkpoints, one more than a run keeps, and a save that was killed."""
    folder = tmp_path / "checkpoints"
    checkpoints = Checkpoints(folder)
    model, training = {"w": np.zeros(2)}, {"step": np.int32(1)}
    checkpoints.save(1, model=model, training=training, meta={"class_names": ["a"]})
    checkpoints.rank(1, 5.0, {})
    checkpoints.close()
    for step in "234":
        shutil.copytree(folder / "1", folder / step)
    (folder / "5.orbax-checkpoint-tmp").mkdir()
    return folder


def test_only_process_0_ranks_and_removes_checkpoints(saved, second):
    before = contents(saved)
    second()
    checkpoints = Checkpoints(saved)
    checkpoints.rank(4, 9.0, {"best": {}})
    checkpoints.close()
    assert contents(saved) == before
    # The others know what it has done.
    assert checkpoints.best_step() == 4
    assert checkpoints.latest_step() == 4


def test_only_process_0_sets_damaged_checkpoints_aside(saved, second, answered):
    for step in "1234":
        (saved / step / "meta" / "metadata").write_text("broken")
    before = contents(saved.parent)
    second()
    places = [f"/run/damaged/{name}" for name in ("4.1", "3", "2", "1")]
    answered([[step, None] for step in (1, 2, 3, 4)], *places)
    checkpoints, warnings = Checkpoints(saved), []
    with pytest.raises(RunError, match="is readable"):
        checkpoints.restore_latest(model={}, training={}, check=lambda path, meta: None, warn=warnings.append)
    checkpoints.close()
    assert [line.partition("moved to ")[2].partition(",")[0] for line in warnings] == places
    assert contents(saved.parent) == before


def test_only_process_0_claims_and_locks_the_workdir(tmp_path, second, capsys):
    # As it would be in use by the first.
    with lock.held(tmp_path, "training"):
        before = contents(tmp_path)
        second()
        with main._held(tmp_path, "training"):
            claim(tmp_path, {"seed": 0})
            main._say("hello")
            main._write_page(tmp_path)  # would not find a run to report
        assert contents(tmp_path) == before
    assert capsys.readouterr().out == ""


def test_only_process_0_removes_a_failed_start(tmp_path, second):
    (tmp_path / "report").mkdir()
    for name in ("metrics.jsonl", "config.json", lock.FILE):
        (tmp_path / name).write_text("")
    before = contents(tmp_path)
    second()
    main._remove_unless_begun(tmp_path, foreign=set())
    main._remove_empty([tmp_path / "report"])
    assert contents(tmp_path) == before


@pytest.fixture
def evaluated(monkeypatch):
    """What the full evaluation is asked for, instead of doing it."""
    calls = []

    def full_evaluation(config, classifier, sources, training, output, *, score=None):
        locked = output.folder is not None and (output.folder / lock.FILE).exists()
        calls.append((classifier, output, locked))

    monkeypatch.setattr(evaluate, "full_evaluation", full_evaluation)
    return calls


class Data:
    """A split of three images."""

    class_names = ("a", "b")
    labels = np.array([[1, 0], [0, 1], [1, 1]], np.uint8)

    def __len__(self):
        return 3


OPENED = SimpleNamespace(
    parts=None,
    model={},
    class_names=["a", "b"],
    class_counts=None,
    num_classes=2,
    thresholds=None,
    predicts_as_trained=True,
    config=SimpleNamespace(
        task="multi_label",
        data=SimpleNamespace(test_splits=("test",), val_split="val", source="scenes"),
        evaluate=SimpleNamespace(thresholds="fixed"),
    ),
)


@pytest.mark.parametrize("process", [0, 1])
def test_only_process_0_writes_the_evaluation_of_a_checkpoint(
    tmp_path, monkeypatch, evaluated, second, process
):
    OPENED.path = tmp_path / "7"
    monkeypatch.setattr(evaluate.opening, "open", lambda path, config: OPENED)
    monkeypatch.setattr(evaluate.configs, "require_splits", lambda data: None)
    monkeypatch.setattr(evaluate.scoring, "for_evaluation", lambda config, parts: None)
    monkeypatch.setattr(
        evaluate.build, "open_sources", lambda config, splits, say: {s: Data() for s in splits}
    )
    if process:
        second()
    evaluate.evaluate_checkpoint(tmp_path / "7", None, tmp_path / "report", print)
    ((_, output, _),) = evaluated
    assert output.folder == (None if process else tmp_path / "report")


@pytest.mark.parametrize("process", [0, 1])
def test_only_process_0_keeps_thresholds(tmp_path, second, process):
    fitted = Thresholds("f1", "val", 3, ["a", "b"], {"average": {COMBINED: [0.25, 0.75]}})
    if process:
        second()
    lines = []
    decide.keep(tmp_path, fitted, lines.append)
    assert (thresholds.read(tmp_path, ["a", "b"]) is None) == bool(process)
    assert lines == ["thresholds: best F1 on val, 3 images"]
    # A checkpoint that is gone, or may not be written, does not end the evaluation.
    decide.keep(tmp_path / "gone", fitted, lines.append)
    assert any("thresholds are not kept" in line for line in lines) == (not process)


class EndedRun:
    """A run that has nothing left to train: step 4 was the best, step 8 is the last."""

    abstract = SimpleNamespace(learned={})

    def __init__(self, folder):
        self.checkpoints = SimpleNamespace(
            latest_step=lambda: 8, best_step=lambda: 4, path=lambda number: folder / str(number)
        )

    def resume(self):
        """Do nothing."""

    fit = close = resume


@pytest.mark.parametrize("process", [0, 1])
@pytest.mark.parametrize(("which", "step"), [("best", "4"), ("last", "8")])
def test_only_process_0_writes_the_evaluation_after_training(
    tmp_path, monkeypatch, evaluated, second, process, which, step
):
    training = SimpleNamespace(
        system=SimpleNamespace(split=lambda learned: (learned, {})),
        parts=None,
        task=SimpleNamespace(selection="mAP"),
        run=lambda workdir, preemption, print_line, instruments: EndedRun(tmp_path),
        compile_scores=lambda run, print_line: None,
        step_memory=None,
        standing=SimpleNamespace(close=lambda: None),
        evaluation=None,
        validation=None,
    )
    config = configs.default()
    config.evaluate.checkpoint, config.data.test_splits = which, ("test",)
    monkeypatch.setattr(train.build, "open_sources", lambda config, splits, say: {s: Data() for s in splits})
    monkeypatch.setattr(train, "_Training", lambda *sources: training)
    monkeypatch.setattr(train, "read_model", lambda path, abstract: {"from": path.name})
    (tmp_path / "report").mkdir()
    if process:
        second()
    lines = []
    train.train(config, tmp_path, lines.append)
    ((classifier, output, locked),) = evaluated
    assert output.folder == (None if process else tmp_path / "report")
    assert (classifier.checkpoint, classifier.model) == (step, {"from": step})
    assert lines[0].startswith(f"training is done; evaluating {step}, the {which} step")
    # Another evaluation in the folder would be waited for, by the first alone.
    assert locked == (not process)


# Each process would take another checkpoint of a run that is still training.
CHOOSING = """
from pathlib import Path
import jax
from cfmlc_jax import checkpoint, cli, processes
from cfmlc_jax.classify import finetune

members = processes.join(None, None, None)
with members:
    checkpoint.find = lambda path: path / "checkpoints" / str(7 + jax.process_index())
    run = Path("/runs/still training")
    print(checkpoint.find_together(run), finetune._located(str(run), print), sep="\\n")
members.leave()
cli.end(0)
"""


def test_two_processes_take_the_same_checkpoint():
    for code, out, err in launchers.ends(launchers.start("slurm", CHOOSING)):
        assert code == 0, err
        assert out.splitlines()[-2:] == 2 * ["/runs/still training/checkpoints/7"]


def test_process_0_lists_the_checkpoints_and_reads_their_progress(saved, answered):
    answered([[2, 0.5], [3, None]], {"rank": 0.5, "finished": True})
    checkpoints = Checkpoints(saved)
    assert (checkpoints.best_step(), checkpoints.latest_step()) == (2, 3)
    abstract = {"w": jax.ShapeDtypeStruct((2,), np.float64)}, {"step": jax.ShapeDtypeStruct((), np.int32)}
    *_, meta = checkpoints.restore_latest(
        model=abstract[0], training=abstract[1], check=lambda path, meta: None, warn=pytest.fail
    )
    checkpoints.close()
    assert (meta["rank"], meta["finished"]) == (0.5, True)


def test_process_0_chooses_the_checkpoint_that_is_evaluated(tmp_path, monkeypatch, answered):
    best, paths = tmp_path / "checkpoints" / "7", []
    answered(str(best))
    monkeypatch.setattr(main, "_is_of_regions", lambda path: False)
    monkeypatch.setattr(main, "_write_page", lambda workdir: None)
    monkeypatch.setattr(main, "evaluate_checkpoint", lambda path, *_: paths.append(path))
    values = main.define_flags()
    values(["main", "--mode=evaluate", f"--checkpoint={tmp_path}"])
    main._evaluate(values, None)
    assert paths == [best]


def test_process_0_chooses_the_owners(tmp_path, monkeypatch, answered):
    def refuse(path):
        raise InputError(f"not {path.name}")

    answered(str(tmp_path / "checkpoints" / "7"))
    monkeypatch.setattr(scoring.opening, "open", refuse)
    config = SimpleNamespace(effect=SimpleNamespace(owners=str(tmp_path)))
    with pytest.raises(InputError, match="not 7"):
        scoring._lender(config, None)


def test_process_0_decides_whether_thresholds_are_fitted(monkeypatch, answered):
    answered(True)
    monkeypatch.setattr(decide, "fit", lambda *_, **__: pytest.fail("fits alone"))
    config = configs.default()
    config.evaluate.thresholds = "f1"
    opened = SimpleNamespace(config=config, thresholds=None)
    assert evaluate._thresholds(opened, {}, None, None, None, keep_stored=True) is None


def test_process_0_decides_whether_a_run_has_begun(tmp_path, monkeypatch, answered):
    answered(True)
    monkeypatch.setattr(finetune, "resumed", lambda config, workdir: "resumed")
    assert main._require_classifier(configs.default(), tmp_path) == "resumed"
