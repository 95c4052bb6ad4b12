"""The campaign of faults: what it counts as lost, and that its faults hit."""

import dataclasses
import errno
import importlib
import json
import math
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from multiprocessing import shared_memory
from pathlib import Path

import jax
import numpy as np
import pytest

from cfmlc_jax import checkpoint, digests
from cfmlc_jax.data.sources.table import Table
from cfmlc_jax.engine.progress import Progress
from cfmlc_jax.engine.run import Run
from scripts.faults import __main__ as command
from scripts.faults import ending as endings
from scripts.faults import subjects, trials, victim
from scripts.faults.ending import Ending, read
from scripts.faults.subjects import SUBJECTS, Ended, Runner, survivors
from scripts.faults.victim import Fault, Victim

ROOT = Path(__file__).parents[2]
# A process that writes three files in a folder, with a fault.
WRITER = """
import os, sys
from pathlib import Path
from scripts.faults.victim import Fault, Victim
folder, note, what, event, repeat = sys.argv[1:]
fault = Fault(what, event=int(event), repeat=bool(int(repeat)))
victim = Victim(fault, folder, Path(note))
victim.start()
for name in "abc":
    try:
        open(os.path.join(folder, name), "w").close()
    except OSError as error:
        print(name, error.strerror)
open(note + ".elsewhere", "w").close()
open(os.path.join(folder, "a")).close()
victim.end()
"""


def written(tmp_path, what, event, *, repeat=True):
    """The files of a process with a fault, its exit code, its output and its note."""
    folder, note = tmp_path / "run", tmp_path / "note"
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", WRITER, str(folder), str(note), what, str(event), str(int(repeat))],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    return (
        sorted(path.name for path in folder.iterdir()),
        done.returncode,
        done.stdout,
        json.loads(note.read_text()),
    )


def test_a_signal_comes_before_its_change_of_a_file(tmp_path):
    names, code, _, note = written(tmp_path, "SIGKILL", 1)
    assert names == ["a"]
    assert code == -signal.SIGKILL
    assert note == {"place": "start: imports", "event": "open b"}


def test_an_interruption_reaches_a_command_in_the_background_of_a_shell(tmp_path):
    victim = [sys.executable, "-m", "scripts.faults.victim", Fault("SIGINT", event=0).text()]
    training = SUBJECTS["pat"].command(tmp_path / "run", tmp_path)
    command = subprocess.Popen(
        ["sh", "-c", '"$@" & wait $!', "sh", *victim, *training],
        env=os.environ | {"PYTHONPATH": str(ROOT), "CFMLC_FAULT_NOTE": str(tmp_path / "note")},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    output, _ = command.communicate(timeout=100)
    assert command.returncode == 130, output
    # It was the command's own wait for the signal, not Python's exception in the main thread.
    assert output.splitlines()[-1].startswith("interrupted; the same command starts again")


def a_save(watched, folder, during):
    """The changes of files of a save, as the audit reports them."""
    path = f"{folder}/checkpoints/7"
    watched.on_event("os.mkdir", (f"{path}.orbax-checkpoint-tmp", 0o777, -1))
    watched.on_event("os.mkdir", (f"{path}.orbax-checkpoint-tmp/model.orbax-checkpoint-tmp", 0o777, -1))
    during(watched.phase())
    watched.on_event("os.rename", (f"{path}.orbax-checkpoint-tmp", path, -1, -1))
    during(watched.phase())
    watched.on_event("os.rename", (f"{path}/.digests.json.9.tmp", f"{path}/digests.json", -1, -1))
    during(watched.phase())


@pytest.mark.parametrize(
    ("phase", "entry", "after", "hit"),
    [
        ("save", 0, 0.0, 1),
        ("save", 0, 60.0, 2),  # it ends sooner
        ("save", 1, 60.0, 5),
        ("end of a save", 1, 0.0, 5),
        ("save", 2, 0.0, None),
        ("start", 0, 0.0, 0),
        ("start", 0, 60.0, 8),
    ],
)
def test_a_fault_comes_in_its_phase(tmp_path, monkeypatch, phase, entry, after, hit):
    watched = Victim(Fault("clock", phase=phase, entry=entry, after=after), str(tmp_path), tmp_path / "note")
    seen, hits = [], []
    monkeypatch.setattr(watched, "act", lambda: hits.append(len(seen)))

    def look(found):
        watched._look()
        seen.append(found)

    look(watched.phase())
    a_save(watched, tmp_path, look)
    a_save(watched, tmp_path, look)
    watched.hit = False
    seen.append("end")
    watched.end()
    assert seen == ["start", *(["save", "end of a save", "start"] * 2), "end"]
    assert hits == ([] if hit is None else [hit])
    note = json.loads((tmp_path / "note").read_text())["phases"]
    assert {name: len(seconds) for name, seconds in note.items()} == {
        "start": 1,
        "save": 2,
        "end of a save": 2,
    }


def test_a_share_of_a_phase_is_in_one_of_its_times():
    run = trials.Undisturbed(Ending(), {"save": [1.0, 3.0], "start": [5.0]}, [])
    found = [run.fault("SIGKILL", "save", share) for share in (0.0, 0.2, 0.5, 0.99)]
    assert [(fault.entry, fault.after) for fault in found] == [
        (0, 0.0),
        (0, pytest.approx(0.8)),
        (1, pytest.approx(1.0)),
        (1, pytest.approx(2.96)),
    ]
    assert run.seconds == 5.0


def test_phases_are_those_of_the_functions_that_run(tmp_path, monkeypatch):
    watched, seen = Victim(Fault(), str(tmp_path), tmp_path / "note"), []
    functions = []
    for place in victim._CALLS:
        module, _, name = place.partition(":")
        owner = importlib.import_module(f"cfmlc_jax.{module}")  # all of them exist
        *owners, name = name.split(".")
        for each in owners:
            owner = getattr(owner, each)
        assert callable(getattr(owner, name))
        functions.append((owner, name))
        if victim._CALLS[place] != "reading":
            monkeypatch.setattr(
                owner, name, lambda inner=None: seen.append(watched.phase()) or (inner and inner())
            )
        else:
            monkeypatch.setattr(owner, name, getattr(owner, name))  # put back afterwards
    del watched._unwrapped[victim._RESTORE]
    watched._wrap()
    assert not watched._unwrapped
    progress = Progress(3, batch_size=1, silent=True)
    for owner, name in functions:
        if owner is not Progress:
            getattr(owner, name)()
    with progress.waiting("input"):
        seen.append(watched.phase())
    assert sorted(seen) == sorted(victim._CALLS.values())
    with progress.waiting("device"):
        assert watched.phase() == "start"
    seen.clear()
    Run.fit(Run._validate)
    assert seen == ["steps", "validation"]
    assert watched.phase() == "start"


def test_removals_in_an_open_folder_are_changes(tmp_path):
    """`rmtree` removes names relative to it."""
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "file").touch()
    number = os.open(folder, os.O_RDONLY)
    assert victim.changed("os.remove", ("file", number)) == str(folder / "file")
    assert victim.changed("os.rmdir", (str(folder), -1)) == str(folder)
    os.close(number)


def test_what_is_restored_is_noted_with_its_digests(run, tmp_path):
    noting = Victim(Fault(), str(run), tmp_path / "note")
    noting._unwrapped = {victim._RESTORE: noting._noting}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint.Checkpoints, "restore_latest", checkpoint.Checkpoints.restore_latest)
        noting._wrap()
        saved = checkpoint.Checkpoints(run / "checkpoints")
        abstract = {
            name: {key: jax.ShapeDtypeStruct(value.shape, value.dtype) for key, value in item.items()}
            for name, item in arrays(40).items()
        }
        saved.restore_latest(**abstract, check=lambda *_: None, warn=pytest.fail)
        saved.close()
    found = json.loads((tmp_path / victim.RESTORED).read_text())
    assert found == {"checkpoints/40": victim.digests_of(endings.arrays(run / "checkpoints" / "40"))}
    assert found["checkpoints/40"] != victim.digests_of(endings.arrays(run / "checkpoints" / "30"))


@pytest.mark.parametrize(
    ("repeat", "names", "output"),
    [
        (True, ["a"], "b No space left on device\nc No space left on device\n"),
        (False, ["a", "c"], "b No space left on device\n"),
    ],
)
def test_an_error_is_raised_once_or_from_then_on(tmp_path, repeat, names, output):
    assert written(tmp_path, "ENOSPC", 1, repeat=repeat)[:3] == (names, 0, output)


def test_a_slow_disk_is_a_hit(tmp_path):
    names, code, output, note = written(tmp_path, "delay", 99)
    assert (names, code, output, note) == (
        ["a", "b", "c"],
        0,
        "",
        {"place": "start: imports", "event": "open a"},
    )


def test_changes_of_files_are_counted(tmp_path):
    note = written(tmp_path, "SIGKILL", 99)[3]
    assert note["events"] == ["open a", "open b", "open c"]
    assert note["phases"]["start"][0] > 0


@pytest.mark.skipif(
    subprocess.run(["unshare", "--mount", "--map-root-user", "true"], check=False).returncode != 0,
    reason="this system lets nobody mount in a namespace of its own",
)
@pytest.mark.parametrize(
    ("disk", "left", "error"),
    [
        ("size=8k", ["a", "b"], errno.ENOSPC),
        ("nr_inodes=2", ["a"], errno.ENOSPC),  # one is the folder's
        ("read-only", ["before"], errno.EROFS),
        ("size=9M", ["a", "b"], 0),
    ],
)
def test_disks(tmp_path, disk, left, error):
    folder, rest = tmp_path / "run", tmp_path / "rest"
    folder.mkdir()
    if disk == "read-only":
        (folder / "before").touch()
    write = """
import sys
try:
    for name, size in ("a", 8000), ("b", 80_000):
        with open(f"{sys.argv[1]}/{name}", "wb", buffering=0) as file:
            if file.write(bytes(size)) < size:
                sys.exit(1)
except OSError as error:
    sys.exit(error.errno)
"""
    words = [*subjects.on_disk(disk, folder, rest), sys.executable, "-c", write, str(folder)]
    assert subprocess.run(words, check=False).returncode == error
    assert sorted(path.name for path in rest.iterdir()) == left
    assert not (folder / "a").exists()


def test_the_clock_jumps(tmp_path, monkeypatch):
    before = time.time()
    monkeypatch.setattr(time, "time", time.time)  # put back afterwards
    Victim(Fault("clock", seconds=-3600.0), str(tmp_path), tmp_path / "note").act()
    assert before - 3700 < time.time() < before - 3500


def test_a_worker_is_killed_when_there_is_one(tmp_path):
    """Threads other than the main one start workers."""
    victim = Victim(Fault("worker"), str(tmp_path), tmp_path / "note")
    acting = threading.Thread(target=victim.act)
    acting.start()
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    starting = threading.Thread(target=worker.start)
    starting.start()
    acting.join(60)
    starting.join()
    worker.join(60)
    assert worker.exitcode == -signal.SIGKILL
    assert json.loads((tmp_path / "note").read_text())["event"] == ""


def arrays(value):
    """Checkpoints' items of one array each."""
    return {"model": {"kernel": np.full(3, value)}, "training": {"step": np.array(value)}}


@pytest.fixture
def run(tmp_path):
    """A workdir as a run leaves it: the best checkpoint, and the two latest."""
    folder = tmp_path / "run"
    saved = checkpoint.Checkpoints(folder / "checkpoints")
    for step, rank in ((10, 0.9), (20, 0.5), (30, 0.1), (40, 0.2)):
        saved.save(step, **arrays(step), meta={"class_names": ["a"], "logged": {"lines": 1, "sha256": "ab"}})
        saved.rank(step, rank, {"finished": step == 40})
    saved.close()
    (folder / "report").mkdir()
    (folder / "config.json").write_text('{"data": {"workers": 0}, "seed": 0}')
    (folder / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0, "time/steps_per_second": 3.0}\n')
    np.savez(folder / "report" / "scores.npz", scores=np.arange(3.0))
    (folder / "report" / "index.html").write_text("seconds: 1</html>\n")
    (folder / "report" / "results.json").write_text('{"mAP": 40.0, "few": NaN}')
    (folder / "report" / "table.csv").write_text("a,b")
    return folder


def test_times_and_workers_are_no_difference(run):
    expected = read(run)
    (run / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0, "time/steps_per_second": 4.0}\n')
    (run / "report" / "index.html").write_text("seconds: 2</html>\n")
    (run / "config.json").write_text('{"data": {"workers": 2}, "seed": 0}')
    assert read(run).differences(expected) == []


def test_differences_are_named(run):
    expected = read(run)
    (run / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.1}\n{"step": 2}\n')
    np.savez(run / "report" / "scores.npz", scores=np.arange(3.0) + 1e-12)
    (run / "report" / ".results.json.12.tmp").touch()
    (run / "report" / "results.json").write_text("{}")
    (run / "report" / "index.html").write_text("seconds: 2")
    (run / "config.json").unlink()
    (run / "damaged").mkdir()
    (run / "damaged" / "7").touch()
    of_files = [
        "config.json is only in one",
        "report/.results.json.12.tmp is only in one",
        "report/index.html differs",
        "report/results.json differs",
        "report/scores.npz differs",
        "metrics.jsonl line 001 differs",
        "metrics.jsonl line 002 is only in one",
        "left: damaged/7",
        "left: report/.results.json.12.tmp",
        "missing: config.json",
    ]
    assert read(run).differences(expected) == of_files
    assert read(run).differences(expected, aside=True) == [
        line for line in of_files if line != "left: damaged/7"
    ]


def removed(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def resaved(path):
    removed(path)
    saved = checkpoint.Checkpoints(path.parent)
    saved.save(int(path.name), **arrays(8), meta={"class_names": ["a"]})
    saved.close()


@pytest.mark.parametrize(
    ("name", "harm", "lines"),
    [
        ("10", removed, ["checkpoints best differs"]),
        ("30", removed, []),  # a run that was asked to end has saved at other steps
        ("40", removed, ["checkpoints last differs"]),
        ("40/rank.json", removed, ["checkpoints/40 rank.json is only in one"]),
        ("10/rank.json", lambda path: path.write_text('{"rank": 0.8}'), ["checkpoints/10 rank.json differs"]),
        ("40/.rank.json.9.tmp", Path.touch, ["left: checkpoints/40/.rank.json.9.tmp"]),
        ("50.orbax-checkpoint-tmp", Path.mkdir, ["left: checkpoints/50.orbax-checkpoint-tmp"]),
        ("20", lambda path: shutil.copytree(path.with_name("30"), path), ["left: checkpoints/20"]),
        (
            "30",
            resaved,
            [
                "meta differs",
                "model/kernel differs",
                "rank.json is only in one",
                "training/step differs",
            ],
        ),
        ("40/digests.json", removed, ["checkpoints/40 digests differs"]),
        ("40/model/more", Path.touch, ["checkpoints/40 digests differs"]),
        ("40/commit_success.txt", removed, []),  # nothing reads it
        (
            "30/model/manifest.ocdbt",
            Path.unlink,
            [
                "digests differs",
                "meta is only in one",
                "model/kernel is only in one",
                "training/step is only in one",
                "unreadable is only in one",
            ],
        ),
    ],
)
def test_differences_of_checkpoints_are_named(run, name, harm, lines):
    expected = read(run)
    harm(run / "checkpoints" / name)
    found = [line.removeprefix("checkpoints/30 ") for line in read(run).differences(expected)]
    assert found == lines


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        ([{}, {}, {}], []),
        ([{}, {"train/loss": 0.3002}, {"train/loss": 0.29}], []),  # it grows
        ([{}, {}, {"train/loss": 0.241}], ["metrics.jsonl line 003 differs"]),  # not at once
        ([{}, {"train/loss": 0.301}, {}], ["metrics.jsonl line 002 differs"]),
        ([{}, {"train/loss": 0.3002}, {"train/loss": 0.31}], ["metrics.jsonl line 003 differs"]),
        ([{}, {"train/loss": 0.3002}, {"train/lr": 1.0001e-5}], ["metrics.jsonl line 003 differs"]),
        ([{}, {"train/loss": 0.3002}, {"train/loss": None}], ["metrics.jsonl line 003 differs"]),
        ([{}, {"val/mAP": 48.0}, {"val/mAP": 41.0}], []),
        ([{}, {"val/mAP": 39.0}, {}], ["metrics.jsonl line 002 differs"]),
        ([{}, {}], ["metrics.jsonl line 003 is only in one"]),
    ],
)
def test_numbers_of_other_devices_differ_by_rounding_that_grows(run, found, lines):
    usual = [
        {"train/loss": loss, "train/lr": 1e-5, "val/mAP": score}
        for loss, score in ((0.4, 40.0), (0.3, 50.0), (0.24, 40.0))
    ]

    def write(lines):
        numbered = ({"step": step} | line for step, line in enumerate(lines))
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in numbered))

    write(usual)
    expected = read(run)
    write([line | other for line, other in zip(usual, found)])
    (run / "report" / "table.csv").write_text("a,c")
    (run / "report" / "results.json").write_text('{"mAP": 41.0, "few": NaN}')
    assert read(run).differences(expected, rounded=True) == lines


@pytest.mark.parametrize(
    ("scores", "results", "lines"),
    [
        ([0.1, 1.1, 1.9], {"mAP": 60.0, "few": math.nan}, []),
        ([0.0, 1.0, 2.0], {"mAP": 40.0, "many": math.nan}, ["report/results.json differs"]),
        ([0.0, 1.0, math.nan], {"mAP": 40.0, "few": math.nan}, ["report/scores.npz differs"]),
        ([0.0, 1.0, 2.0, 3.0], {"mAP": 40.0, "few": math.nan}, ["report/scores.npz differs"]),
        ([0.0, -1.0, 2.0], {"mAP": 40.0, "few": math.nan}, ["report/scores.npz differs"]),
    ],
)
def test_scores_of_other_devices_are_near(run, scores, results, lines):
    expected = read(run)
    (run / "report" / "results.json").write_text(json.dumps(results))
    np.savez(run / "report" / "scores.npz", scores=np.array(scores))
    assert read(run).differences(expected, rounded=True) == lines


@pytest.mark.parametrize(
    ("part", "value", "alike"),
    [
        ("model/kernel", 32.0, True),
        ("model/kernel", 60.0, False),
        ("model/kernel", math.nan, False),
        ("training/mu", 60.0, True),  # as noisy as gradients
        ("training/mu", math.nan, False),
        ("training/step", 31, False),
    ],
)
def test_arrays_of_other_devices_are_near(part, value, alike):
    def ending(value):
        found = np.full(3, value) if isinstance(value, float) else np.array(value)
        return Ending(steps={"checkpoints/30": {part: found}})

    expected = ending(30 if part == "training/step" else 30.0)
    assert (ending(value).differences(expected, rounded=True) == []) == alike
    assert len(ending(value).differences(expected)) == 1


def test_the_place_of_a_run_is_no_difference(run, tmp_path):
    (run / "config.json").write_text(json.dumps({"records": str(run / "counterfactuals")}))
    expected = read(run)
    moved = run.rename(tmp_path / "moved")
    assert read(moved).differences(expected) == ["config.json differs"]
    (moved / "config.json").write_text(json.dumps({"records": str(moved / "counterfactuals")}))
    assert read(moved).differences(expected) == []


def test_lines_of_which_a_run_said_that_they_are_lost_are_not_compared(run):
    log = run / "metrics.jsonl"
    lines = ['{"step": 7, "loss": 3.0}\n', '{"step": 8, "loss": 2.0}\n']
    log.write_text("".join(lines))
    expected, lost = read(run), ("metrics.jsonl", 7)
    log.write_text(lines[1])
    assert read(run).differences(expected, lost=lost) == []
    saved = [
        Ending(steps={"checkpoints/30": {"meta": {"a": a, "logged": {"lines": n}}}})
        for a, n in ((1, 2), (1, 1), (2, 2))
    ]
    assert saved[1].differences(saved[0]) == ["checkpoints/30 meta differs"]
    assert saved[1].differences(saved[0], lost=lost) == []
    assert saved[2].differences(saved[0], lost=lost) == ["checkpoints/30 meta differs"]
    log.write_text(lines[0])
    assert read(run).differences(expected, lost=lost) == ["metrics.jsonl line 001 is only in one"]
    log.unlink()
    assert "missing: metrics.jsonl" in read(run).differences(expected, lost=lost)


@pytest.mark.parametrize(
    ("ended", "codes", "why", "problems"),
    [
        (Ended(-9, "", 1.0), (-9,), "", []),
        (Ended(143, "asked to end", 1.0), (143, -15), "", []),
        (Ended(1, "error: No space left", 1.0), (0, 1), "space", []),
        (Ended(0, "done", 1.0), (143, -15), "", ["exit code 0: done"]),
        (Ended(-9, "", 900.0, hung=True), (-9,), "", ["it did not end by itself"]),
        (
            Ended(1, "done", 1.0),
            (1,),
            "",
            ["exit code 1 without one line that names the error: []"],
        ),
        (
            Ended(1, "error: x.png is broken", 1.0),
            (1,),
            "y.png",
            ["exit code 1 without one line that names y.png: ['error: x.png is broken']"],
        ),
        (Ended(-11, "step 3", 1.0), (143,), "", ["exit code -11: step 3"]),
        (Ended(1, "Traceback (most recent call last)\nerror: x", 1.0), (1,), "", ["traceback: error: x"]),
    ],
)
def test_bad_ends(ended, codes, why, problems):
    assert trials._bad_end(ended, *codes, why=why) == problems


@pytest.fixture
def setting(run):
    """Trials for a run, half of which is the whole."""
    undisturbed = trials.Undisturbed(read(run), {"steps": [5.0]}, [])
    return trials.Setting(undisturbed, undisturbed, run, {"checkpoints": run}, 0, 0)


class Commands:
    """In place of a runner: its commands end as told, and the first that has saved leaves what is in a folder."""

    def __init__(self, folder, source, ends, note=None):
        self.folder, self.workdir, self.note = folder, folder / "trial", folder / "note.json"
        self._source, self._ends = source, list(ends)
        if note is not None:
            self.note.write_text(json.dumps(note))

    def run(self, *flags, **options):
        ended = self._ends.pop(0)
        if (ended.code == 0 or "saved" in ended.output) and not self.workdir.exists():
            shutil.copytree(self._source, self.workdir)
        return ended

    def left(self):
        return []


HIT = {"place": "steps: engine.run.fit", "event": ""}
DONE = Ended(0, "done", 1.0)
STARTED = Ended(0, "0.1.0, loading JAX\ndone", 1.0)
RESUMED = Ended(0, "resuming at step 40 of 40\ndone", 1.0)
TERMINATED = Ended(143, "0.1.0, loading JAX\nasked to end; saved step 40 of 40", 1.0)


@pytest.mark.parametrize(
    ("what", "ends", "note", "verdict", "problem"),
    [
        ("SIGTERM", [TERMINATED, RESUMED], HIT, "survived", ""),
        (
            "SIGTERM",
            [TERMINATED, DONE],
            HIT,
            "lost",
            "resumed at steps [], not at those of its checkpoints, [40]",
        ),
        (
            "SIGTERM",
            [Ended(143, "0.1.0, loading JAX\nasked to end; saved step 41 of 50", 1.0), RESUMED],
            HIT,
            "lost",
            "it said that step 41 is saved",
        ),
        ("SIGTERM", [Ended(-15, "0.1.0, loading JAX", 1.0), DONE], HIT, "lost", "exit code -15"),
        (
            "SIGTERM",
            [Ended(143, "0.1.0, loading JAX", 1.0), DONE],
            HIT,
            "lost",
            "it did not say that it was asked",
        ),
        ("SIGTERM", [Ended(-15, "", 1.0), DONE], HIT, "survived", ""),  # before it handles signals
        ("SIGTERM", [DONE, RESUMED], {"events": []}, "untouched", ""),
        ("SIGTERM", [STARTED, RESUMED], HIT, "lost", "exit code 0: done"),
        ("SIGTERM", [STARTED, RESUMED], HIT | {"place": "report: report.page.write"}, "survived", ""),
        (
            "SIGINT",
            [Ended(130, "0.1.0, loading JAX\nTraceback (most recent call last):\ninterrupted", 1.0), DONE],
            HIT,
            "lost",
            "traceback",
        ),
        ("ENOSPC", [DONE, RESUMED], HIT, "survived", ""),
        ("ENOSPC", [Ended(1, "error: a (No space left on device)", 1.0), DONE], HIT, "survived", ""),
        ("ENOSPC", [Ended(1, "error: a is strange", 1.0), DONE], HIT, "lost", "exit code 1 without one line"),
        ("ENOSPC", [Ended(1, "error: full", 1.0), DONE], None, "lost", "ended before the fault: exit code 1"),
        ("delay", [Ended(1, "error: slow", 1.0), DONE], HIT, "lost", "exit code 1: error: slow"),
        ("worker", [DONE, RESUMED], HIT, "untouched", ""),
        (
            "worker",
            [Ended(1, "error: x", 1.0), DONE],
            HIT,
            "lost",
            "exit code 1 without one line that names a worker",
        ),
    ],
)
def test_a_fault_must_have_its_effect(setting, run, tmp_path, what, ends, note, verdict, problem):
    outcome = trials._hit(setting, Fault(what))(Commands(tmp_path, run, ends, note))
    assert outcome.verdict == verdict, outcome.problems
    assert bool(outcome.problems) == bool(problem)
    assert not problem or any(each.startswith(problem) for each in outcome.problems)


def test_a_run_that_ends_by_itself_must_be_complete(setting, run, tmp_path):
    """Although the next command mends what is missing."""
    lacking = tmp_path / "lacking"
    shutil.copytree(run, lacking)
    (lacking / "report" / "table.csv").unlink()
    runner = Commands(tmp_path, lacking, [DONE, RESUMED], HIT)
    outcome = trials._hit(setting, Fault("ENOSPC"))(runner)
    assert "missing: report/table.csv" in outcome.problems


@pytest.mark.parametrize(("lasting", "times"), [(True, 1), (False, 2)])
def test_a_disk_without_removals_keeps_the_lock_until_the_next_command(
    setting, run, tmp_path, lasting, times
):
    locked = tmp_path / "locked"
    shutil.copytree(run, locked)
    (locked / ".lock").write_text("of the first command, and of the next")
    runner = Commands(tmp_path, locked, [DONE, RESUMED], HIT)
    outcome = trials._hit(setting, Fault("EROFS", repeat=lasting))(runner)
    assert outcome.problems == [".lock is only in one", "left: .lock"] * times


def test_what_is_changed_is_put_back_after_a_refusal(setting, run, tmp_path):
    refused = Ended(1, "error: checkpoints/10 is of another run", 1.0)
    change = lambda path: trials._put(run / "checkpoints" / "40", path)  # noqa: E731
    runner = Commands(tmp_path, run, [refused, RESUMED])
    outcome = trials._changed(setting, run, "checkpoints/10", change)(runner)
    assert (outcome.verdict, outcome.problems) == ("refused", [])


@pytest.mark.parametrize(
    ("error", "verdict"),
    [
        ("error: checkpoint /a/checkpoints/40 cannot be read: it lacks an array", "refused"),
        ("error: checkpoint /a/checkpoints/30 cannot be read: it lacks an array", "lost"),
    ],
)
def test_a_damaged_part_is_named_by_its_checkpoint(setting, run, tmp_path, error, verdict):
    part = next(path for path in (run / "checkpoints" / "40").rglob("*") if path.is_file())
    first, *_ = trials._damages(setting, run, [part])
    outcome = first.run(Commands(tmp_path, run, [Ended(1, error, 1.0), RESUMED]))
    assert outcome.verdict == verdict, outcome.problems


@pytest.mark.parametrize(
    ("name", "damage", "verdict"),
    [
        ("checkpoints/10/meta/metadata", "one bit flipped", "unread"),
        ("checkpoints/10/meta/metadata", "removed", "unread"),
        ("checkpoints/10/digests.json", "removed", "unread"),
        ("checkpoints/10/rank.json", "one bit flipped", "lost"),  # no digest tells
        ("checkpoints/40/meta/metadata", "one bit flipped", "lost"),  # from there it resumes
    ],
)
def test_what_a_run_does_not_read_its_readers_must_refuse(setting, run, tmp_path, name, damage, verdict):
    for step in (10, 40):
        digests.write(run / "checkpoints" / str(step))
    setting = dataclasses.replace(
        setting, undisturbed=dataclasses.replace(setting.undisturbed, ending=read(run))
    )
    runner = Commands(tmp_path, run, [RESUMED])
    outcome = trials._changed(setting, run, name, lambda path: trials.damage_file(path, damage))(runner)
    assert outcome.verdict == verdict, outcome.problems


def moved(runner, step):
    """In place of a run that sets a checkpoint aside."""
    aside = runner.workdir / "damaged" / step
    aside.parent.mkdir()
    (runner.workdir / "checkpoints" / step).rename(aside)


@pytest.mark.parametrize(
    ("aside", "output", "problem"),
    [
        ("40", "warning: checkpoint 40 is damaged (x)\nresuming at step 30 of 40", ""),
        ("40", "resuming at step 30 of 40", "no warning names damaged/40"),
        (
            "40",
            "warning: checkpoint 40 is damaged\nresuming at step 10 of 40",
            "resumed at steps [10], not at those of its checkpoints, [30]",
        ),
        ("30", "warning: checkpoint 30 is damaged\nresuming at step 40 of 40", "damaged/30 was set aside"),
        (None, "resuming at step 30 of 40", "resumed at steps [30]"),
        (None, "resuming at step 40 of 40", ""),
    ],
)
def test_only_the_damaged_checkpoint_is_set_aside(setting, run, tmp_path, aside, output, problem):
    runner = Commands(tmp_path, run, [Ended(0, output, 1.0)])
    ends = runner.run

    def run_once(*flags):
        if aside:
            moved(runner, aside)
        return ends(*flags)

    runner.run = run_once
    outcome = trials._changed(setting, run, "checkpoints/40", lambda path: None)(runner)
    found = [each for each in outcome.problems if "differs" not in each and "missing" not in each]
    assert [each.startswith(problem) for each in found][: bool(problem)] == [True] * bool(problem)
    assert bool(found) == bool(problem)


def test_what_was_restored_must_be_what_was_saved(run, tmp_path):
    runner = Commands(tmp_path, run, [])
    latest = {runner.workdir / "checkpoints": 40}
    (tmp_path / victim.RESTORED).write_text(
        json.dumps({"checkpoints/40": victim.digests_of(endings.arrays(run / "checkpoints" / "40"))})
    )
    assert trials._bad_restored(runner, run, latest) == []
    resaved(run / "checkpoints" / "40")
    assert len(trials._bad_restored(runner, run, latest)) == 1
    (tmp_path / victim.RESTORED).unlink()
    assert len(trials._bad_restored(runner, run, latest)) == 1


@pytest.mark.parametrize(
    ("ends", "seconds", "problem"),
    [
        ([Ended(1, "error: process 1 died", 1.0), Ended(1, "error: process 1 died", 1.0)], 20, ""),
        ([Ended(1, "error: process 1 died", 1.0)], 70, "the others ended 70 s after it"),
        ([Ended(1, "error: they did not all connect", 1.0)], 310, ""),
        ([Ended(1, "error: x", 1.0)], 20, "no error names process 1"),
        ([Ended(-11, "", 1.0)], 20, "exit codes {-11}"),
    ],
)
def test_the_others_must_notice_a_death(ends, seconds, problem):
    found = trials._bad_others(ends, 1, seconds)
    assert [each.startswith(problem) for each in found] == [True] * bool(problem)


def test_halves_are_killed_in_the_middle_of_each_training():
    events = [f"os.rename checkpoints/{step}" for step in (7, 14, 20, 21, 28, 35, 40)]
    events += [f"os.rename plain/checkpoints/{step}" for step in (7, 14, 17)]
    events += ["os.rename other/checkpoints/3", "os.rename checkpoints/40/digests.json"]
    assert trials.folders_of_halves(events) == {"checkpoints": 28, "plain/checkpoints": 14}


def test_a_power_cut_tears_files(run, tmp_path):
    source = run / "checkpoints" / "40"
    kinds = set()
    for seed in range(5):
        folder = tmp_path / str(seed)
        shutil.copytree(source, folder)
        trials._tear(folder, random.Random(seed))
        for path in (path.relative_to(source) for path in source.rglob("*") if path.is_file()):
            if not (folder / path).exists():
                kinds.add("removed")
            elif (folder / path).read_bytes() == (source / path).read_bytes():
                kinds.add("whole")
            else:
                kinds.add(f"{(folder / path).stat().st_size / (source / path).stat().st_size:.1f}")
    assert {"removed", "whole", "0.0", "0.5", "1.0"} <= kinds


def test_every_damage_changes_a_file():
    content = bytes(range(10))
    for name, damage in trials.DAMAGES.items():
        assert damage(content) != content, name


def test_processes_that_are_left_are_found(tmp_path):
    runner = Runner(SUBJECTS["pat"], tmp_path / "trial", tmp_path)
    process = subprocess.Popen(["sleep", "60"], env=runner.environment())
    try:
        until = time.monotonic() + 30
        # Its environment appears a moment after the process.
        while not (alive := survivors(runner.mark, patience=0.0)) and time.monotonic() < until:
            time.sleep(0.01)
        assert alive == ["sleep 60 "]
    finally:
        process.kill()
        process.wait()
    assert survivors(runner.mark, patience=0.0) == []


def test_shared_memory_that_is_left_is_found():
    before = subjects.shared_memory()
    block = shared_memory.SharedMemory(create=True, size=100)
    name = block.name.lstrip("/")
    try:  # other programs of this machine have blocks, too
        assert name not in subjects.unused(before, patience=0.0)  # this process uses it
        block.close()
        assert name in subjects.unused(before, patience=0.1)
    finally:
        block.unlink()
    assert name not in subjects.unused(before, patience=0.0)


def test_semaphores_in_use_are_not_taken_for_left():
    before = subjects.shared_memory()
    semaphore = multiprocessing.get_context("spawn").Semaphore()
    name = f"sem.{semaphore._semlock.name.lstrip('/')}"
    assert name in subjects.shared_memory() - before
    assert name not in subjects.unused(before, patience=0.0)


def test_photos_are_written_anew_and_read(tmp_path):
    runner = Runner(SUBJECTS["photos"], tmp_path, tmp_path / "programs")
    runner.restore_data()
    source = Table(runner.data, "train")
    assert (len(source), sorted(source.class_names)) == (48, ["blue", "green", "red"])
    first = {path: path.read_bytes() for path in runner.data.rglob("*.*")}
    (runner.data / "train.csv").unlink()
    runner.restore_data()
    assert {path: path.read_bytes() for path in runner.data.rglob("*.*")} == first
    assert f"--config.data.root={runner.data}" in runner.subject.command(runner.workdir, runner.data)


def test_trials_are_the_same_in_every_command(run):
    phases = {phase: [1.0] for phase in victim.PHASES}
    undisturbed = trials.Undisturbed(Ending(), phases, [f"open {number}" for number in range(50)])
    halves = {"checkpoints": run}
    many = {2: undisturbed, 4: undisturbed}
    setting = trials.Setting(undisturbed, undisturbed, run, halves, 4, 0, halves, many)
    for name, campaign in trials.CAMPAIGNS.items():
        names = [trial.name for trial in campaign(setting)]
        assert names == [trial.name for trial in campaign(setting)]
        assert len(names) == len(set(names)), name
    names = [trial.name for trial in trials.moments(setting)]
    assert len(names) == 4 * 3 * len(victim.PHASES)
    assert sum("with workers" in name for name in names) == len(names) / 4


def test_lost_trials_are_listed_and_fail_the_command(tmp_path, monkeypatch, capsys):
    rows = [
        {
            "system": "pat",
            "campaign": "moments",
            "trial": trial,
            "verdict": verdict,
            "place": place,
            "problems": ["x differs"],
        }
        for trial, verdict, place in (
            ("a", "survived", "save: checkpoint.wait"),
            ("b", "lost", "start: imports"),
            ("c", "untouched", ""),
        )
    ]
    (tmp_path / "trials.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr(sys, "argv", ["faults", "table", f"--workdir={tmp_path}"])
    assert command.main() == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split("|")[1:-1] == [
        f" {cell} "
        for cell in (
            "moments",
            "pat   ",
            "    3",
            "       1",
            "     0",
            "      0",
            "     0",
            "        1",
            "   1",
        )
    ]
    assert "hit in moments of pat: start 1, save 1" in lines
    assert lines[-1] == "- pat, b: x differs"


def test_a_campaign_that_was_killed_continues(tmp_path):
    row = {"system": "pat", "campaign": "moments", "trial": "a", "verdict": "survived", "problems": []}
    path = tmp_path / "trials.jsonl"
    path.write_text(json.dumps(row) + '\n{"system": "pat", "camp')
    command._drop_torn_line(path)
    assert command._rows(tmp_path) == [row]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table", "--workdir={}/typo"], "{}/typo has no trials.jsonl; give the --workdir of a campaign"),
        (["data", "--system=pat", "--workdir={}/new"], "--system=pat reads no files; data is for photos"),
        (
            ["moments", "--workdir={}/file"],
            "--workdir {}/file cannot be created (File exists); give another folder",
        ),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "file").touch()
    monkeypatch.setattr(sys, "argv", ["faults", *(word.format(tmp_path) for word in arguments)])
    assert command.main() == 1
    assert capsys.readouterr().err == f"error: {message.format(tmp_path)}\n"
    assert not (tmp_path / "typo").exists()


@pytest.mark.parametrize(
    "other", [{"code": "of yesterday"}, {"cores": 1000}, {"processor": "of another machine"}]
)
def test_trials_are_not_compared_with_a_run_under_other_conditions(tmp_path, other):
    stored = tmp_path / "pat" / "undisturbed" / "undisturbed.json"
    stored.parent.mkdir(parents=True)
    conditions = command._conditions() | other
    content = {"conditions": conditions, "parts": {}, "paths": [], "seconds": 1, "events": []}
    stored.write_text(json.dumps(content))
    arguments = [sys.executable, "-m", "scripts.faults", "moments", "--system=pat", f"--workdir={tmp_path}"]
    ended = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1].startswith(f"error: {stored}: ")
    assert "another --workdir" in ended.stderr
    assert not (tmp_path / "trials.jsonl").exists()
