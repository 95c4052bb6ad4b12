"""Trackers and writers of the user's: what they get, how they are continued, and that they never disturb a run."""

import http.server
import json
import sys
import threading
import time
import typing
from pathlib import Path

import jax
import numpy as np
import pytest
import toys

from cfmlc_jax.engine import follower, trackers
from cfmlc_jax.engine.hooks import Preempted
from cfmlc_jax.engine.instruments import Instruments
from cfmlc_jax.engine.reporting import Reporting
from cfmlc_jax.engine.trackers import Label
from cfmlc_jax.errors import InputError

STEPS = toys.EPOCHS * toys.PER_EPOCH
BOTH = ("wandb", "mlflow")
MODULES = ("wandb", "mlflow", "mlflow.entities")


@pytest.fixture
def fakes(monkeypatch):
    """The modules wandb and mlflow of tests/fake_trackers: {name: module}."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "fake_trackers"))
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    import mlflow
    import wandb

    for module in (wandb, mlflow):
        module.reset()
    monkeypatch.setattr(follower, "RETRY_SECONDS", 0.01)
    yield {"wandb": wandb, "mlflow": mlflow}
    wandb.hanging.set()
    for name in MODULES:  # other tests find the real ones, or none
        sys.modules.pop(name, None)


def fit(workdir, names=BOTH, *, printed=None, asked=0, before=lambda step: None, **options):
    """Train `Line`, and report on it, as the command does."""
    print_line = (lambda line: None) if printed is None else printed.append
    with Reporting(names, print_line=print_line, **options) as reporting:
        made = toys.fitted(
            toys.Line(), workdir, asked=asked, before=before, instruments=Instruments(reporting)
        )
        (workdir / "report").mkdir(exist_ok=True)
        (workdir / "report" / "index.html").write_text("page")
        reporting.write_results({"final/fit": 2.5, "final/undefined": float("nan")}, workdir / "report")
    return made


def preempt(workdir, asked=7, **options):
    with pytest.raises(Preempted):
        fit(workdir, asked=asked, **options)


def lines(workdir):
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def numbers(workdir):
    """{(metric, step): value} of metrics.jsonl, except times and memory."""
    return {
        (name, line["step"]): value
        for line in lines(workdir)
        for name, value in line.items()
        if name != "step" and not name.startswith(("time/", "memory/"))
    }


def sent_to(fakes, name):
    """The same as `numbers`, of a tracker's only run; fails if it has anything twice."""
    (calls,) = fakes[name].runs.values()
    if name == "wandb":
        sent = [
            (key, row["step"], value) for kind, row in calls if kind == "log" for key, value in row.items()
        ]
        sent = [each for each in sent if each[0] not in ("step", "report")]
    else:
        sent = [(key, step, value) for kind, rows in calls if kind == "metrics" for key, value, step in rows]
        sent = [each for each in sent if not each[0].startswith("final/")]
    sent = [each for each in sent if not each[0].startswith(("time/", "memory/"))]
    places = [(key, step) for key, step, _ in sent]
    assert len(set(places)) == len(places)
    return {(key, step): value for key, step, value in sent}


def kinds(fakes, name, kind):
    (calls,) = fakes[name].runs.values()
    return [content for each, content in calls if each == kind]


def test_what_trackers_get(fakes, tmp_path):
    printed = []
    label = Label("digits", "first", "group", ("a", "b"))
    hparams = {f"field{i}": i for i in range(150)}
    fit(tmp_path / "run", printed=printed, label=label, hparams=hparams)
    (wandb_id,), (mlflow_id,) = fakes["wandb"].runs, fakes["mlflow"].runs
    assert printed == [
        f"wandb: offline; upload by wandb sync wandb/offline-run-*-{wandb_id}",
        f"mlflow: run {mlflow_id} of experiment digits at file:fake",
    ]
    for name in BOTH:
        assert sent_to(fakes, name) == numbers(tmp_path / "run")
    ((_, options), *_) = fakes["wandb"].runs[wandb_id]
    assert options | {"dir": None} == {
        "project": "digits", "name": "first", "group": "group", "tags": ("a", "b"), "resume": "allow",
        "config": hparams, "dir": None,
    }  # fmt: skip
    assert options["dir"] == str(tmp_path / "run")
    assert kinds(fakes, "wandb", "summary") == [{"final/fit": 2.5}]
    page = str(tmp_path / "run" / "report" / "index.html")
    assert fakes["wandb"].runs[wandb_id][-2:] == [
        ("log", {"step": STEPS, "report": ("page", page)}),
        ("finish", 0),
    ]
    ((_, created), *rest) = fakes["mlflow"].runs[mlflow_id]
    assert created == (
        "experiment 0",
        {"workdir": str(tmp_path / "run"), "a": "true", "b": "true", "group": "group"},
        "first",
    )
    params = {name: value for each in kinds(fakes, "mlflow", "params") for name, value in each.items()}
    assert params == {name: str(value) for name, value in hparams.items()}
    assert rest[-3:] == [
        ("metrics", [("final/fit", 2.5, STEPS)]), ("artifact", (page, "report")), ("status", "FINISHED"),
    ]  # fmt: skip


def test_names_that_are_not_given(fakes, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_PROJECT", "mine")
    fit(tmp_path / "run")
    (options,) = kinds(fakes, "wandb", "init")
    assert (options["project"], options["name"], options["group"]) == ("mine", "run", None)
    assert kinds(fakes, "mlflow", "create")[0][1:] == ({"workdir": str(tmp_path / "run")}, "run")
    assert fakes["mlflow"].MlflowClient().get_experiment_by_name("cfmlc_jax") is not None


def test_a_resumed_run_continues_its_run_and_doubles_no_step(fakes, tmp_path):
    # Logs of steps 3, 6, 9 and 12; the checkpoint of step 5 is the last, although step 6 was sent.
    preempt(tmp_path / "run")
    assert kinds(fakes, "wandb", "preempting") == [None]
    assert kinds(fakes, "mlflow", "status") == ["KILLED"]
    for step in (6, 7):
        checkpoint = tmp_path / "run" / "checkpoints" / str(step)
        if checkpoint.exists():
            checkpoint.rename(tmp_path / str(step))
    printed = []
    fit(tmp_path / "run", printed=printed)
    assert len(printed) == 2
    for name in BOTH:
        assert sent_to(fakes, name) == numbers(tmp_path / "run")
    assert kinds(fakes, "mlflow", "status") == ["KILLED", "RUNNING", "FINISHED"]
    assert kinds(fakes, "wandb", "finish") == [1, 0]


def test_lines_that_a_killed_run_did_not_send_follow(fakes, tmp_path):
    preempt(tmp_path / "run")
    for name in BOTH:
        path = tmp_path / "run" / "trackers" / f"{name}.json"
        record = json.loads(path.read_text())
        (calls,) = fakes[name].runs.values()
        del calls[:]  # the tracker lost all
        path.write_text(json.dumps(record | {"sent": [-1, 0]}))
    fit(tmp_path / "run")
    for name in BOTH:
        assert sent_to(fakes, name) == numbers(tmp_path / "run")


def test_a_tracker_that_is_added_later_gets_the_whole_history(fakes, tmp_path):
    preempt(tmp_path / "run", names=())
    fit(tmp_path / "run", names=("mlflow",))
    assert sent_to(fakes, "mlflow") == numbers(tmp_path / "run")


def test_a_run_that_starts_again_is_a_new_run(fakes, tmp_path):
    preempt(tmp_path / "run", asked=2)
    for folder in (tmp_path / "run" / "checkpoints").iterdir():
        folder.rename(tmp_path / folder.name)
    fit(tmp_path / "run")
    assert [len(fakes[name].runs) for name in BOTH] == [2, 2]


def test_a_damaged_record_is_a_new_run(fakes, tmp_path):
    preempt(tmp_path / "run", names=("wandb",))
    (tmp_path / "run" / "trackers" / "wandb.json").write_text('{"id": "x"}')
    fit(tmp_path / "run", names=("wandb",))
    assert len(fakes["wandb"].runs) == 2


@pytest.mark.parametrize("name", BOTH)
def test_a_tracker_that_goes_down_is_reported_once_and_gets_all_when_it_is_back(
    fakes, tmp_path, name, capsys
):
    def before(step):
        if step == 3:
            fakes[name].down = ConnectionError("no route\nto host")
        if step == 11:
            fakes[name].down = None
            time.sleep(0.1)

    fit(tmp_path / "run", names=(name,), before=before)
    text = capsys.readouterr().err
    assert text.count("no route to host") == 1
    assert f"{name} does not take the run's metrics (no route to host); training goes on" in text
    assert f"{name} works again" in text
    assert sent_to(fakes, name) == numbers(tmp_path / "run")


@pytest.mark.parametrize("name", BOTH)
def test_a_tracker_that_stays_down_costs_nothing_but_its_lines(fakes, tmp_path, name):
    def before(step):
        if step == 3:
            fakes[name].down = RuntimeError("down")

    printed = []
    fit(tmp_path / "run", names=(name,), before=before, printed=printed)
    assert len(lines(tmp_path / "run")) == 7
    (last,) = [line for line in printed if "not there yet" in line]
    assert last.startswith(f"{name}: 8 of the run's lines are not there yet; ")  # with the results
    assert "the same command sends what is missing" in last
    fakes[name].down = None
    fit(tmp_path / "run", names=(name,))
    assert sent_to(fakes, name) == numbers(tmp_path / "run")


def test_a_tracker_that_hangs_does_not_hold_the_run(fakes, tmp_path, monkeypatch):
    monkeypatch.setattr(follower, "CLOSE_SECONDS", dict.fromkeys(follower.CLOSE_SECONDS, 0.1))

    def before(step):
        if step == 3:
            fakes["wandb"].hanging.clear()

    printed = []
    start = time.monotonic()
    fit(tmp_path / "run", names=("wandb",), before=before, printed=printed)
    assert time.monotonic() - start < 60
    assert "wandb: 8 of the run's lines are not there yet" in printed[-1]


def test_a_tracker_that_hangs_at_the_end(fakes, tmp_path, monkeypatch):
    monkeypatch.setattr(follower, "CLOSE_SECONDS", dict.fromkeys(follower.CLOSE_SECONDS, 0.2))
    monkeypatch.setattr(
        fakes["wandb"].Run,
        "finish",
        lambda run, exit_code: (fakes["wandb"].hanging.clear(), run._keep("", 0)),
    )
    printed = []
    fit(tmp_path / "run", names=("wandb",), printed=printed)
    text = "wandb did not confirm all of the run's lines; wandb sync wandb/offline-run-1-x uploads the rest"
    assert printed[1:] == [text]


def test_errors_of_trackers_are_short():
    assert follower.brief(OSError("a\nb")) == "a b"
    assert follower.brief(OSError()) == "OSError"
    assert follower.brief(OSError("x" * 200)) == "x" * 200
    assert follower.brief(OSError("x" * 201)) == "x" * 199 + "…"


def test_a_server_that_hangs_at_the_end(fakes, tmp_path, monkeypatch):
    monkeypatch.setattr(follower, "CLOSE_SECONDS", dict.fromkeys(follower.CLOSE_SECONDS, 0.2))
    answered = threading.Event()
    monkeypatch.setattr(fakes["mlflow"].MlflowClient, "set_terminated", lambda *_, **__: answered.wait(60))
    printed = []
    fit(tmp_path / "run", names=("mlflow",), printed=printed)
    answered.set()
    text = "mlflow did not confirm all of the run's lines; the same command sends them again"
    assert printed[1:] == [text]


def test_whether_a_server_answers():
    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_error(500)

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Answer)
    address = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever).start()
    trackers.require_answer(address)
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match=f"{address} does not answer: .*refused"):
        trackers.require_answer(address)


def test_a_tracker_that_is_down_at_the_start_is_an_error(fakes, tmp_path):
    fakes["wandb"].down = fakes["wandb"].Error("No API key\nconfigured.")
    with pytest.raises(
        InputError, match=r"has 'wandb', which cannot be used \(No API key configured.\); run wandb login"
    ):
        fit(tmp_path / "run")
    fakes["mlflow"].down = ConnectionError("refused")
    with pytest.raises(InputError, match=r"'mlflow', .* \(refused\); set MLFLOW_TRACKING_URI"):
        fit(tmp_path / "run", names=("mlflow",))


def test_a_tracker_that_is_down_when_a_run_resumes_is_a_warning(fakes, tmp_path, capsys):
    preempt(tmp_path / "run")
    fakes["wandb"].down = fakes["wandb"].Error("No API key configured.")

    def before(step):
        if step == 10:
            time.sleep(0.1)
            fakes["wandb"].down = None

    fit(tmp_path / "run", before=before)
    assert capsys.readouterr().err.count("No API key") == 1
    for name in BOTH:
        assert sent_to(fakes, name) == numbers(tmp_path / "run")


def test_a_failed_run_is_failed_in_the_trackers(fakes, tmp_path):
    def before(step):
        if step == 6:
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match="a bug"):
        fit(tmp_path / "run", before=before)
    assert kinds(fakes, "mlflow", "status") == ["FAILED"]
    assert kinds(fakes, "wandb", "finish") == [1]


def test_the_numbers_of_a_run_are_the_same_with_and_without(fakes, tmp_path):
    reported = fit(tmp_path / "reported")
    alone = toys.fitted(toys.Line(), tmp_path / "alone")
    jax.tree.map(np.testing.assert_array_equal, reported._state, alone._state)
    assert numbers(tmp_path / "reported") == numbers(tmp_path / "alone")


class Kept:
    """A writer of the user's, as a test sees it."""

    made: typing.ClassVar[list] = []

    def __init__(self, workdir, config):
        self.workdir, self.config, self.calls = workdir, config, []
        Kept.made.append(self)

    def __getattr__(self, name):
        def call(*arguments):
            assert threading.current_thread() is threading.main_thread()
            if name == "write_scalars" and arguments[0] == 6 and self.config == "bad":
                raise ZeroDivisionError("in the user's code")
            self.calls.append((name, *arguments))

        return call


@pytest.fixture
def kept(monkeypatch):
    """Makes Kept importable as metrics_of_ours:Kept."""
    monkeypatch.setitem(sys.modules, "metrics_of_ours", sys.modules[__name__])
    monkeypatch.setattr(Kept, "made", [])
    return "metrics_of_ours:Kept"


def test_a_class_of_the_users_is_a_writer(kept, tmp_path):
    fit(tmp_path / "run", names=(kept,), config={"seed": 3}, hparams={"seed": 3})
    (writer,) = Kept.made
    assert (writer.workdir, writer.config) == (tmp_path / "run", {"seed": 3})
    assert writer.calls[0] == ("write_hparams", {"seed": 3})
    assert [call[1] for call in writer.calls if call[0] == "write_scalars"] == [3, 4, 6, 8, 9, 12, 12, 12]
    assert writer.calls[-1] == ("close",)


def test_a_class_of_the_users_that_raises_ends_no_run(kept, tmp_path, capsys):
    fit(tmp_path / "run", names=(kept,), config="bad")
    text = capsys.readouterr().err
    assert f"{kept}.write_scalars raised ZeroDivisionError (in the user's code) at {__file__}, line" in text
    assert text.count("ZeroDivisionError") == 1
    assert len(lines(tmp_path / "run")) == 7


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nowhere:Writer", "cannot be imported .No module named 'nowhere'.; give module:Class"),
        ("json:Writer", "cannot be imported .module 'json' has no attribute 'Writer'"),
        (
            "types:SimpleNamespace",
            "lacks write_scalars, write_images, write_texts, write_hparams, flush, close",
        ),
    ],
)
def test_a_class_that_cannot_be_used(tmp_path, monkeypatch, name, words):
    monkeypatch.setattr("types.SimpleNamespace", lambda workdir, config: object())
    with pytest.raises(InputError, match=words):
        fit(tmp_path / "run", names=(name,))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "class Writer(:",
            r"cannot be imported .invalid syntax .broken_writer.py, line 1..; give module:Class",
        ),
        ("1 / 0", "cannot be imported .it raised ZeroDivisionError .* at .*broken_writer.py, line 1.; mend"),
        (
            "class Writer:\n  def __init__(self, workdir, config):\n    open(workdir / 'no')",
            "whose constructor, called with .* raised FileNotFoundError .* at .*broken_writer.py, line 3; mend",
        ),
        ("class Writer: pass", "whose constructor, called with .* raised TypeError .Writer.. takes no arg"),
    ],
)
def test_a_class_whose_code_raises(tmp_path, monkeypatch, text, words):
    (tmp_path / "broken_writer.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "broken_writer", raising=False)
    with pytest.raises(InputError, match=words), Reporting(("broken_writer:Writer",)) as reporting:
        reporting.open(tmp_path, last_step=0)


@pytest.mark.parametrize("name", ["tensorboard", "wandb", "mlflow"])
def test_a_package_that_is_missing(monkeypatch, name):
    monkeypatch.setattr("importlib.util.find_spec", lambda package: None)
    with pytest.raises(InputError, match=f"has '{name}', which needs .*pip install 'cfmlc_jax.{name}.'"):
        Reporting((name,)).__enter__()


def test_images_go_to_the_trackers(fakes, tmp_path):
    picture = np.zeros((2, 4, 5, 3), np.uint8)
    with Reporting(BOTH, print_line=lambda line: None) as reporting:
        reporting.open(tmp_path, last_step=0)
        reporting.write_images(4, {"sheet": picture})
    assert kinds(fakes, "wandb", "log") == [{"step": 4, "images/sheet": 2 * [("image", (4, 5, 3))]}]
    assert kinds(fakes, "mlflow", "image") == [("sheet_0", (4, 5, 3), 4), ("sheet_1", (4, 5, 3), 4)]
