"""The trials of each campaign: a fault, how the run ends, and whether it ends like one left alone after it is resumed."""

import errno
import json
import os
import random
import re
import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import digests
from cfmlc_jax.engine.writers import METRICS
from cfmlc_jax.errors import RunError
from scripts.faults import ending as endings
from scripts.faults.ending import Ending
from scripts.faults.subjects import PICTURES, Ended, Runner
from scripts.faults.victim import PHASES, RESTORED, SAVE, SIGNING, Fault, digests_of

SURVIVED, WARNED, REFUSED, UNREAD, UNTOUCHED, LOST = (
    "survived",
    "warned",
    "refused",
    "unread",
    "untouched",
    "lost",
)
# How soon a run of several processes must end when one of them dies, and when it dies before all have connected.
SECONDS_TO_END, SECONDS_TO_CONNECT = 60, 330
PROCESSES = (2, 4)  # in runs of which one is killed
# The campaigns that need a run of files, a second run with another seed, and runs of several processes left alone.
DATA, DAMAGE, OF_MANY = "data", "damage", "processes"
WORKERS = "--config.data.workers=2"
_SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT")
_CODES = {
    "SIGKILL": (-signal.SIGKILL,),
    "SIGTERM": (128 + signal.SIGTERM,),
    "SIGINT": (128 + signal.SIGINT,),
    "worker": (0, 1),  # 0: it had delivered all
    "delay": (0,),
}
# What a command prints when it is hit, of each signal.
_WORDS = {"SIGTERM": "asked to end", "SIGINT": "interrupted"}
# Printed by a command as soon as it has its handlers of signals: one that comes before ends it as any program.
_HANDLING = ", loading JAX"
_RESUMING = re.compile(r"^resuming at step (\d+) of \d+$", re.MULTILINE)
_SAVED = re.compile(r"asked to end; saved step (\d+) ")
_SAVE = re.compile(r"os\.rename ((?:.*/)?checkpoints)/(\d+)")
# What Python prints of a worker whose parent ends while it starts, and the exit codes of such parents.
_STARTING = re.compile(
    r"^(_pickle.UnpicklingError: pickle data was truncated|EOFError: Ran out of input)", re.MULTILINE
)
_CUT = (-signal.SIGKILL, 128 + signal.SIGTERM, 128 + signal.SIGINT)
# In these phases a run that is asked to end may end by itself before it looks.
_LAST = ("evaluation", "report")
_MOST_PROBLEMS = 8  # that are listed
DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "one bit flipped": lambda content: _flipped(content),
    "cut in half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "removed": lambda content: None,
}


@dataclass(frozen=True)
class Undisturbed:
    """A run that was left alone.

    ending: what it left.
    phases: how long each phase took, each time.
    events: its changes of files in order.
    """

    ending: Ending
    phases: dict[str, list[float]]
    events: list[str]

    @property
    def seconds(self) -> float:
        """What it took; saves go on beside the other phases."""
        return sum(sum(seconds) for phase, seconds in self.phases.items() if phase not in (SAVE, SIGNING))

    def fault(self, what: str, phase: str, share: float, **options: Any) -> Fault:
        """A fault after this share of the time that the run is in a phase."""
        left, entry, times = share * sum(self.phases.get(phase, [])), 0, self.phases.get(phase, [])
        while entry < len(times) and left >= times[entry]:
            left -= times[entry]
            entry += 1
        return Fault(what, phase=phase, entry=entry, after=left, **options)


@dataclass
class Outcome:
    """Of a trial.

    verdict: "survived": resumed, the run ended like the undisturbed one; "warned": likewise, but for the lines of
        metrics.jsonl, of which it said that they are lost; "refused": it ended with one line that says why, and with the
        damaged file restored it ended like the undisturbed one; "unread": it ended like that but for the file, which it
        does not read, and which whoever reads all of the checkpoint refuses; "untouched": the fault came after the end, and the run
        had ended like the undisturbed one; "lost": anything else.
    place: what the process was doing when it was hit: the phase, and the innermost function.
    facts: how the commands ended, and where they resumed.
    problems: why it is "lost".
    seconds: what the trial took.
    """

    verdict: str = SURVIVED
    place: str = ""
    facts: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def fail(self, problems: Sequence[str]) -> None:
        """Count the trial as lost if there are problems."""
        if problems:
            self.verdict = LOST
            self.problems += problems[:_MOST_PROBLEMS]
            if len(problems) > _MOST_PROBLEMS:
                self.problems.append(f"and {len(problems) - _MOST_PROBLEMS} more")


@dataclass(frozen=True)
class Trial:
    """One fault for one subject: `run` does it with a runner of an empty folder."""

    name: str
    run: Callable[[Runner], Outcome]


@dataclass(frozen=True)
class Setting:
    """What the trials of a subject are made from.

    undisturbed: of one process; with_workers: likewise, with processes that read images.
    finished: the workdir of the undisturbed run.
    halves: by folder of checkpoints, the workdir of a run that was killed when it was training there; trials copy it.
    count: of random trials of each kind; 0: all that there are.
    others: as `halves`, of a run with another seed, for `damage`.
    of_many: runs of several processes that are left alone, for `processes`.
    """

    undisturbed: Undisturbed
    with_workers: Undisturbed
    finished: Path
    halves: Mapping[str, Path]
    count: int
    seed: int
    others: Mapping[str, Path] = field(default_factory=dict)
    of_many: Mapping[int, Undisturbed] = field(default_factory=dict)


def moments(setting: Setting) -> list[Trial]:
    """Signals at random moments of each phase; every fourth time with workers, and to the group of all processes."""
    chance = random.Random(setting.seed)
    trials = []
    for number in range(setting.count or 10):
        with_workers = number % 4 == 3
        run = setting.with_workers if with_workers else setting.undisturbed
        for what in ("SIGKILL", "SIGTERM", "SIGINT"):
            for phase in PHASES:
                share = chance.uniform(0, 1)
                if phase not in run.phases:
                    continue
                name = (
                    f"{what} {number} after {share:.3f} of {phase}{', with workers' if with_workers else ''}"
                )
                fault = run.fault(what, phase, share, group=with_workers and what != "SIGKILL")
                trials.append(Trial(name, _hit(setting, fault, *([WORKERS] if with_workers else []))))
    return trials


def changes(setting: Setting) -> list[Trial]:
    """SIGKILL before a change of a file: an open for writing, a rename, a removal, a new folder."""
    return _at_changes(setting, [Fault("SIGKILL")])


def errors(setting: Setting) -> list[Trial]:
    """Changes of files that fail: a full disk, a broken one, one without inodes, a folder that became read-only."""
    kinds = [Fault(what, repeat=repeat) for what in ("ENOSPC", "EIO", "EROFS") for repeat in (True, False)]
    return _at_changes(setting, kinds)


def _at_changes(setting, faults):
    events = setting.undisturbed.events
    trials = []
    for number, fault in enumerate(faults):
        chance = random.Random(f"{setting.seed} {number}")
        count = min(setting.count or len(events), len(events))
        for event in sorted(chance.sample(range(len(events)), count)):
            lasting = " from then on" if fault.repeat and not fault.what.startswith("SIG") else ""
            name = f"{fault.what}{lasting} at change {event}: {events[event]}"
            hit = Fault(fault.what, event=event, repeat=fault.repeat)
            trials.append(Trial(name, _hit(setting, hit)))
    return trials


def damage(setting: Setting) -> list[Trial]:
    """Files of killed runs and of a finished one: damaged, torn by a power cut, or of another checkpoint or run."""
    trials = []
    for place, source in setting.halves.items():
        folder = source / place
        latest, best = max(_steps(folder), key=_step), checkpoints.find(folder)
        own = [path for path in folder.parent.iterdir() if path.is_file()]
        trials += _damages(setting, source, [latest, *own, *([] if best == latest else _read_parts(best))])
        trials += _tears(setting, source, latest)
        trials += _exchanges(setting, source, place)
    best = checkpoints.find(setting.finished)
    return trials + _damages(setting, setting.finished, [setting.finished / "report", *_read_parts(best)])


def _read_parts(checkpoint):
    """What is read of a checkpoint from which nothing resumes."""
    return [path for path in checkpoint.iterdir() if path.name != "training"]


def _damages(setting, source, paths):
    """Damages of the files at the paths, which are files or folders in the workdir `source`."""
    files = [file for path in paths for file in (path, *path.rglob("*")) if file.is_file()]
    names = sorted({str(file.relative_to(source)) for file in files})
    damages = [(name, damage) for name in names for damage in DAMAGES]
    if setting.count:
        chance = random.Random(f"{setting.seed} {source.parent.name}")
        damages = chance.sample(damages, min(setting.count, len(damages)))
    return [
        Trial(
            f"{source.parent.name}: {name}: {damage}",
            _changed(
                setting,
                source,
                name,
                lambda path, damage=damage: damage_file(path, damage),
                why=_checkpoint_of(name),
            ),
        )
        for name, damage in damages
    ]


def _checkpoint_of(name):
    """The checkpoint that a file belongs to, such as "checkpoints/40"; "" if to none."""
    return next((str(folder) for folder in Path(name).parents if folder.name.isdecimal()), "")


def _tears(setting, source, latest):
    name, trials = str(latest.relative_to(source)), []
    for number in range(setting.count or 10):
        tear = random.Random(f"{setting.seed} {number}")
        change = lambda path, tear=tear: _tear(path, tear)  # noqa: E731
        trials.append(Trial(f"{name} torn by power cut {number}", _changed(setting, source, name, change)))
    return trials


def _exchanges(setting, source, place):
    """Parts of the latest checkpoint of the one before it, and of a run with another seed; other files of that run."""
    *_, before, latest = sorted(_steps(source / place), key=_step)
    own = latest.relative_to(source)
    kinds = {"the checkpoint before": before}
    other = setting.others.get(place)
    trials = []
    if other is not None:
        kinds["another run"] = max(_steps(other / place), key=_step)
        workdir = Path(place).parent
        for name, why in (
            (own, own.name),
            (workdir / "config.json", "another configuration"),
            (workdir / METRICS, METRICS),
        ):
            whole = (kinds["another run"] if name == own else other / name).resolve()
            change = lambda path, whole=whole: _put(whole, path)  # noqa: E731
            trials.append(
                Trial(f"{name} of another run", _changed(setting, source, str(name), change, why=why))
            )
    for whose, checkpoint in kinds.items():
        for part in sorted(checkpoint.iterdir()):
            name = own / part.name
            if (source / name).exists():
                change = lambda path, part=part: _put(part, path)  # noqa: E731
                trial = _changed(setting, source, str(name), change, why=str(own))
                trials.append(Trial(f"{name} of {whose}", trial))
    return trials


def disks(setting: Setting) -> list[Trial]:
    """Small disks, on which the C++ code that writes arrays fails, too: without room, without inodes, read-only."""
    files = [path for path in _first(setting).rglob("*") if path.is_file()]
    needed = {
        "size": sum(path.stat().st_size for path in files) // 1024,
        "nr_inodes": len(files),
    }
    chance = random.Random(setting.seed)
    options = [
        f"{name}={int(chance.uniform(0.05, 1.5) * needed[name])}{'k' if name == 'size' else ''}"
        for name in needed
        for _ in range(setting.count or 20)
    ]
    trials = [Trial(f"a disk of {each}", _on_disk(setting, each)) for each in dict.fromkeys(options)]
    return [*trials, Trial("the disk is read-only", _on_disk(setting, "read-only"))]


def processes(setting: Setting) -> list[Trial]:
    """Runs of two and four processes, of which one is killed, or asked to end, at a random moment of a phase."""
    chance = random.Random(setting.seed)
    trials = []
    for number in range(setting.count or 10):
        for count in PROCESSES:
            for what in ("SIGKILL", "SIGTERM"):
                phase = ("steps", "validation", "evaluation", "compilation", "save", "reading")[number % 6]
                # The first process alone begins and ends saves.
                victim, share = 0 if phase == "save" else chance.randrange(count), chance.uniform(0, 1)
                fault = setting.of_many[count].fault(what, phase, share)
                name = f"{what} {number} to process {victim} of {count} after {share:.3f} of {phase}"
                trials.append(Trial(name, _one_of_many(setting, count, victim, fault)))
    return trials


def surroundings(setting: Setting) -> list[Trial]:
    """Slow disks, clocks that jump, killed workers, a second run in the workdir, other devices, workers and processes."""
    run = setting.undisturbed
    faults = {
        "every change of a file takes 0.2 s more": Fault("delay", seconds=0.2),
        "the clock jumps back by a day": run.fault("clock", "steps", 0.6, seconds=-86400.0),
        "the clock jumps ahead by a day": run.fault("clock", "steps", 0.6, seconds=86400.0),
    }
    trials = [Trial(name, _hit(setting, fault)) for name, fault in faults.items()]
    for phase in ("reading", "steps", "validation", "evaluation"):
        fault = setting.with_workers.fault("worker", phase, 0.4)
        trials.append(Trial(f"a worker is killed in {phase}", _hit(setting, fault, WORKERS)))
    trials.append(Trial("a second run in the workdir", _second(setting)))
    elsewhere = {
        "with two workers": Place(flags=(WORKERS,)),
        "on 2 devices": Place(devices=2),
        "on 8 devices": Place(devices=8),
        "on 4 devices, fsdp 4": Place(devices=4, flags=("--config.mesh.fsdp=4",)),
        "by two processes": Place(processes=2),
    }
    for folder, half in setting.halves.items():
        for name, place in elsewhere.items():
            trials.append(Trial(f"{folder} resumed {name}", _resumed_at(setting, half, place)))
            trials.append(Trial(f"{folder} begun {name}", _begun_at(setting, half, folder, place)))
    return trials


@dataclass(frozen=True)
class Harm:
    """What happens to the data of a run: to which file, and what of it the error must name."""

    name: str
    change: Callable[[Path], object]
    why: str


def data(setting: Setting) -> list[Trial]:
    """Pictures that vanish or break during a run, pictures and tables that do while it is not running."""
    picture, table = f"{PICTURES}/train-7.png", "train.csv"
    pictures = {
        "a picture is removed": Harm(picture, lambda path: path.unlink(), "train-7.png"),
        "a picture is cut in half": Harm(
            picture, lambda path: damage_file(path, "cut in half"), "train-7.png"
        ),
        "all pictures are moved away": Harm(
            PICTURES, lambda path: path.rename(path.with_name("elsewhere")), f"{PICTURES}/"
        ),
    }
    tables = {
        "a label changes": Harm(table, lambda path: _edit_last(path, ";red"), "train has other labels"),
        "a line is removed": Harm(table, lambda path: _edit_last(path, None), "train has 47 images, not 48"),
        "a class is added": Harm(table, lambda path: _edit_last(path, ";cyan"), "classes added: cyan"),
        "the table is removed": Harm(table, lambda path: path.unlink(), table),
    }
    trials = [
        Trial(f"{name} during the run", _harmed(setting, harm, during=True))
        for name, harm in pictures.items()
    ]
    return trials + [
        Trial(f"{name} before it is resumed", _harmed(setting, harm, during=False))
        for name, harm in (pictures | tables).items()
    ]


CAMPAIGNS: dict[str, Callable[[Setting], list[Trial]]] = {
    "moments": moments,
    "changes": changes,
    "errors": errors,
    DAMAGE: damage,
    "disks": disks,
    OF_MANY: processes,
    "surroundings": surroundings,
    DATA: data,
}


def undisturbed(runner: Runner, *flags: str) -> Undisturbed:
    """Run a subject without a fault.

    Raises:
        RunError: it does not end with exit code 0.
    """
    _require_success(runner, runner.run(*flags, fault=Fault()))
    return _of_note(runner)


def undisturbed_many(runner: Runner, count: int) -> Undisturbed:
    """A run of a subject by several processes without a fault; its phases are those of the first one.

    Raises:
        RunError: one does not end with exit code 0.
    """
    for ended in _finish(runner, _start_many(runner, count, faults={0: Fault()})):
        _require_success(runner, ended)
    return _of_note(runner)


def _of_note(runner):
    note = _note(runner)
    ending = endings.read(runner.workdir)
    if ending.unreadable:
        raise RunError(
            f"what {runner.subject.name} left cannot be compared: {ending.unreadable}; see {runner.folder}"
        )
    return Undisturbed(ending, note["phases"], note["events"])


def folders_of_halves(events: list[str]) -> dict[str, int]:
    """The folders of checkpoints in which a run saves three times or more, and the step after which it is killed there."""
    steps: dict[str, list[int]] = {}
    for event in events:
        if found := _SAVE.fullmatch(event):
            steps.setdefault(found[1], []).append(int(found[2]))
    return {folder: saved[int(0.6 * len(saved))] for folder, saved in steps.items() if len(saved) > 2}


def half_way(runner: Runner, folder: str, step: int, *flags: str) -> None:
    """Kill a run of a subject when it has saved this step there.

    Raises:
        RunError: it ends by itself, or has no two checkpoints there then.
    """
    process = runner.start(*flags)
    saved = runner.workdir / folder / str(step) / digests.FILE
    while not saved.exists() and process.poll() is None:
        time.sleep(0.01)
    process.kill()
    ended = runner.finish(process)
    if ended.code != -signal.SIGKILL or len(_steps(runner.workdir / folder)) < 2:
        raise RunError(
            f"the run of {runner.subject.name} was not killed in {folder}: {_last_line(ended)}; see {runner.folder}"
        )


def _require_success(runner, ended):
    if ended.code:
        raise RunError(
            f"{runner.subject.name} does not run undisturbed: {_last_line(ended)}; see {runner.folder}"
        )


def _first(setting):
    return next(iter(setting.halves.values()))


def _step(path):
    return int(path.name)


def _steps(folder):
    """The checkpoints in a folder."""
    return [path for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []


def _latest(workdir):
    """The latest step in each folder of checkpoints of a run."""
    folders = [path for path in workdir.rglob("checkpoints") if path.is_dir()]
    return {folder: max(map(_step, _steps(folder))) for folder in folders if _steps(folder)}


def _hit(setting, fault, *flags):
    """A run with a fault, which is then resumed."""

    def run(runner):
        ended = runner.run(*flags, fault=fault)
        note = _note(runner)
        without_effect = "events" in note or (fault.what == "worker" and ended.code == 0)
        outcome = Outcome(UNTOUCHED if without_effect else SURVIVED, note.get("place", ""))
        outcome.facts.append(f"{note.get('event', '')} exit code {ended.code}: {_last_line(ended)}".lstrip())
        if "events" in note:
            outcome.fail(_bad_end(ended, 0))
        elif "place" not in note:
            outcome.fail([f"ended before the fault: exit code {ended.code}: {_last_line(ended)}"])
        elif fault.what in _SIGNALS:
            outcome.fail(_bad_signal(runner, ended, fault))
        else:
            why = ""
            if fault.what == "worker":
                why = "a worker process that reads images died"
            elif hasattr(errno, fault.what):
                why = os.strerror(getattr(errno, fault.what))
            outcome.fail(_bad_end(ended, *_CODES.get(fault.what, (0, 1)), why=why))
        return _resume(
            runner,
            setting.undisturbed.ending,
            outcome,
            *flags,
            complete=ended.code == 0,
            locked=hasattr(errno, fault.what) and fault.repeat,
        )

    return run


def _bad_signal(runner, ended, fault):
    """What is wrong with the end of a run after a signal."""
    number = signal.Signals[fault.what]
    if _HANDLING not in ended.output:
        allowed = (-number, *_CODES[fault.what])
        return [] if ended.code in allowed else [f"exit code {ended.code}: {_last_line(ended)}"]
    if fault.what == "SIGTERM" and ended.code == 0 and _note(runner)["place"].startswith(_LAST):
        return _bad_end(ended, 0)
    problems = _bad_end(ended, *_CODES[fault.what])
    if _WORDS.get(fault.what, "") not in ended.output:
        problems.append(f"it did not say that it was {_WORDS[fault.what]}: {_last_line(ended)}")
    saved = [int(step) for step in _SAVED.findall(ended.output)]
    if saved and saved[-1] not in _latest(runner.workdir).values():
        problems.append(f"it said that step {saved[-1]} is saved, and has {_latest(runner.workdir)}")
    return problems


def _changed(setting, source, name, change, *, why=""):
    """A resumed run, of which a file or a folder was changed before; if it is refused, the error says why, or names it."""

    def run(runner):
        shutil.copytree(source, runner.workdir)
        path, expected = runner.workdir / name, setting.undisturbed.ending
        change(path)
        latest = _latest(runner.workdir)
        outcome, ended = Outcome(), runner.run()
        outcome.facts.append(f"exit code {ended.code}: {_last_line(ended)}")
        if ended.code:
            outcome.verdict = REFUSED
            outcome.fail(_bad_end(ended, 1, why=why or path.name))
            _put(source / name, path)
            return _resume(runner, expected, outcome)
        lost = None
        if path.name == METRICS and any(METRICS in line for line in ended.warnings):
            outcome.verdict = WARNED
            # Lines after the checkpoint are written anew.
            steps = map(_step, _steps((source / name).parent / "checkpoints"))
            lost = name, max(steps, default=0)
        if _is_unread(source, name, runner.workdir):
            outcome.verdict = UNREAD
            _put(source / name, path)
        aside = _set_aside(runner.workdir, path, ended, outcome)
        for folder, step in aside.items():
            latest[folder] = max(
                other
                for other in map(_step, _steps(source / folder.relative_to(runner.workdir)))
                if other != step
            )
        outcome.fail(_bad_end(ended, 0) + _bad_resume(ended, latest))
        return _compare(runner, expected, outcome, aside=bool(aside), lost=lost)

    return run


def _is_unread(source, name, workdir):
    """Whether a damaged file is still in its checkpoint, which is not the one to resume from, and does not escape a reader.

    That of the digests may be missing: so a process that is killed after the rename leaves a checkpoint.
    """
    checkpoint = _checkpoint_of(name)
    if not checkpoint or _step(Path(checkpoint)) == max(map(_step, _steps((source / checkpoint).parent))):
        return False
    folder = workdir / checkpoint
    without_digests = name.endswith(digests.FILE) and not (folder / digests.FILE).exists()
    return folder.is_dir() and (without_digests or bool(digests.difference(folder, endings.PARTS)))


def _set_aside(workdir, changed, ended, outcome):
    """The steps that were set aside, by folder of checkpoints: at most the one that was changed, with a warning."""
    aside = {}
    for path in workdir.rglob("damaged/*"):
        folder = path.parent.parent / "checkpoints"
        aside[folder] = int(path.name)
        if (folder / path.name) not in (changed, *changed.parents):
            outcome.fail([f"{path.relative_to(workdir)} was set aside, which nobody changed"])
        if not any(f"checkpoint {path.name} is damaged" in line for line in ended.output.splitlines()):
            outcome.fail([f"no warning names {path.relative_to(workdir)}"])
    return aside


def _put(source, path):
    """Copy a file or a folder to a place, instead of what is there."""
    if path.is_dir():
        shutil.rmtree(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if source.is_dir():
        shutil.copytree(source, path)
    else:
        shutil.copyfile(source, path)


def _tear(folder, chance):
    """Leave of the files in a folder what a power cut may: each one is whole, empty, zeroed, cut in half or not there."""
    kinds = [damage for damage in DAMAGES if damage != "one bit flipped"]
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    chosen = chance.choices([None, *kinds], [len(kinds), *(1 for _ in kinds)], k=len(files))
    if not any(chosen):
        chosen[0] = "empty"
    for file, kind in zip(files, chosen):
        if kind is not None:
            damage_file(file, kind)


def _harmed(setting, harm, *, during):
    """A run whose data are harmed: it ends by itself, or with a line that names what is wrong, and resumes with good data."""

    def run(runner):
        runner.restore_data()
        if during:
            process = runner.start()
            time.sleep(0.6 * setting.undisturbed.seconds)
            harm.change(runner.data / harm.name)
            ended = runner.finish(process)
        else:
            shutil.copytree(_first(setting), runner.workdir)
            harm.change(runner.data / harm.name)
            ended = runner.run()
        # During the run the images may have been read before.
        outcome = Outcome(REFUSED if ended.code else SURVIVED)
        outcome.facts.append(f"exit code {ended.code}: {_last_line(ended)}")
        outcome.fail(_bad_end(ended, *((0, 1) if during else (1,)), why=harm.why))
        runner.restore_data()
        return _resume(runner, setting.undisturbed.ending, outcome, complete=ended.code == 0)

    return run


def _on_disk(setting, disk):
    """A run on a disk that lacks something; it resumes, with what is left, on one that lacks nothing."""

    def run(runner):
        if disk == "read-only":
            shutil.copytree(_first(setting), runner.workdir)
        ended = runner.run_on_disk(disk)
        outcome = Outcome(SURVIVED if ended.code else UNTOUCHED)
        outcome.facts.append(f"exit code {ended.code}: {_last_line(ended)}")
        lacks, codes = (errno.EROFS, (1,)) if disk == "read-only" else (errno.ENOSPC, (0, 1))
        outcome.fail(_bad_end(ended, *codes, why=os.strerror(lacks)))
        return _resume(runner, setting.undisturbed.ending, outcome, complete=ended.code == 0)

    return run


def damage_file(path: Path, name: str) -> None:
    """Damage a file; the name is one of `DAMAGES`."""
    damaged = DAMAGES[name](path.read_bytes())
    if damaged is None:
        path.unlink()
    else:
        path.write_bytes(damaged)


def _edit_last(path, more):
    """Add to the last line of a table, or remove it."""
    lines = path.read_text().splitlines()
    last = lines.pop()
    path.write_text("\n".join(lines if more is None else [*lines, last + more]) + "\n")


def _one_of_many(setting, count, victim, fault):
    """A run of several processes, one of which gets a signal; all must end, and the same processes resume."""

    def run(runner):
        expected = setting.of_many[count].ending
        started = _start_many(runner, count, faults={victim: fault})
        hit = started[victim]
        # After a request each ends in its own time; after a death the others must notice.
        while hit.poll() is None and not (fault.what == "SIGTERM" and runner.note.exists()):
            time.sleep(0.05)
        since = time.monotonic()
        ends = _finish(runner, started)
        seconds, note = time.monotonic() - since, _note(runner)
        outcome = Outcome(UNTOUCHED if "events" in note else SURVIVED, note.get("place", ""))
        outcome.facts += [f"exit code {ended.code}: {_last_line(ended)}" for ended in ends]
        outcome.facts.append(f"the others ended {seconds:.0f} s later")
        if "events" in note:
            for ended in ends:
                outcome.fail(_bad_end(ended, 0))
        elif fault.what == "SIGTERM":
            for ended in ends:
                outcome.fail(_bad_end(ended, *_CODES["SIGTERM"]))
            if not any(_WORDS["SIGTERM"] in ended.output for ended in ends):
                outcome.fail(["no process said that it was asked to end"])
        else:
            outcome.fail(_bad_end(ends.pop(victim), *_CODES["SIGKILL"]))
            outcome.fail(_bad_others(ends, victim, seconds))
        complete = all(ended.code == 0 for ended in ends)
        if complete:
            _compare(runner, expected, outcome)
        outcome.fail(runner.left())
        latest = _latest(runner.workdir)
        first, *others = _finish(runner, _start_many(runner, count))
        for ended in (first, *others):
            outcome.fail(_bad_end(ended, 0))
        outcome.facts += _RESUMING.findall(first.output)
        outcome.fail(_bad_resume(first, latest))
        return _compare(runner, expected, outcome)

    return run


def _bad_others(ends, victim, seconds):
    """What is wrong with the ends of the other processes, so many seconds after one was killed."""
    errors = [line for ended in ends for line in ended.errors]
    waited = any("did not all connect" in line for line in errors)
    problems = []
    if seconds > (SECONDS_TO_CONNECT if waited else SECONDS_TO_END):
        problems.append(f"the others ended {seconds:.0f} s after it")
    codes = {ended.code for ended in ends}
    if not codes <= {0, 1} or any(ended.hung or ended.traceback for ended in ends):
        problems.append(f"exit codes {codes} of the others: {_last_line(ends[0])}")
    if 1 in codes and not waited and not any(f"process {victim} " in line for line in errors):
        problems.append(f"no error names process {victim}: {errors}")
    return problems


def _start_many(runner, count, *flags, faults: Mapping[int, Fault] | None = None):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
    return [
        runner.start(
            *flags,
            address,
            f"--num_processes={count}",
            f"--process_id={number}",
            fault=(faults or {}).get(number),
        )
        for number in range(count)
    ]


def _finish(runner, started):
    return [runner.finish(process) for process in started]


def _second(setting):
    """A run beside one that is in training: the second must be refused, and the first undisturbed."""

    def run(runner):
        first = runner.start()
        lock = runner.workdir / ".lock"
        while not lock.exists() and first.poll() is None:
            time.sleep(0.02)
        second = runner.run()
        outcome = Outcome()
        outcome.facts.append(f"exit code {second.code}: {_last_line(second)}")
        outcome.fail(_bad_end(second, 1, why=f"{runner.workdir} is in use by process {first.pid}"))
        outcome.fail(_bad_end(runner.finish(first), 0))
        return _compare(runner, setting.undisturbed.ending, outcome)

    return run


@dataclass(frozen=True)
class Place:
    """Where a run is: its devices, its processes, and flags of its own."""

    devices: int = 1
    processes: int = 1
    flags: tuple[str, ...] = ()

    @property
    def rounded(self) -> bool:
        """Whether sums are added in another order than on one device."""
        return (self.devices, self.processes) != (1, 1)

    def start(self, runner: Runner) -> list:
        """Start the run there, and return its processes; the first notes what it restores."""
        if self.processes > 1:
            return _start_many(runner, self.processes, *self.flags, faults={0: Fault()})
        return [runner.start(*self.flags, fault=Fault(), devices=self.devices)]

    def bad(self, ended: Ended) -> list[str]:
        """What is wrong with the place of a command: it has other devices."""
        devices = f"{self.processes * self.devices} cpu device"
        return [] if devices in ended.output else [f"it was not on {devices}s"]


def _resumed_at(setting, half, place):
    """A killed run that is resumed elsewhere: with the arrays that were saved, and on from there."""

    def run(runner):
        shutil.copytree(half, runner.workdir)
        outcome, latest = Outcome(), _latest(runner.workdir)
        first, *others = _finish(runner, place.start(runner))
        for ended in (first, *others):
            outcome.fail(_bad_end(ended, 0))
        outcome.facts += _RESUMING.findall(first.output)
        outcome.fail(place.bad(first) + _bad_resume(first, latest) + _bad_restored(runner, half, latest))
        return _compare(runner, setting.undisturbed.ending, outcome, rounded=place.rounded)

    return run


def _begun_at(setting, half, folder, place):
    """A run that is killed elsewhere, when it has the checkpoint that `half` has; and is resumed on one device."""
    saved = f"{folder}/{max(map(_step, _steps(half / folder)))}/{digests.FILE}"

    def run(runner):
        started = place.start(runner)
        while not (runner.workdir / saved).exists() and all(process.poll() is None for process in started):
            time.sleep(0.01)
        for process in started:
            process.kill()
        outcome, ends = Outcome(), _finish(runner, started)
        for ended in ends:
            outcome.fail(_bad_end(ended, *_CODES["SIGKILL"]))
        outcome.fail(place.bad(ends[0]))
        latest = _latest(runner.workdir)
        before = runner.folder / "before"
        shutil.copytree(runner.workdir, before)
        outcome.fail(runner.left())
        ended = runner.run(fault=Fault())
        outcome.facts += _RESUMING.findall(ended.output)
        outcome.fail(_bad_end(ended, 0) + _bad_resume(ended, latest) + _bad_restored(runner, before, latest))
        return _compare(runner, setting.undisturbed.ending, outcome, rounded=place.rounded)

    return run


def _bad_restored(runner, before, latest):
    """What is wrong with the arrays that a run restored: they are not, bit for bit, those of its latest checkpoints."""
    path = runner.folder / RESTORED
    found = json.loads(path.read_text()) if path.exists() else {}
    expected = {}
    for folder, step in latest.items():
        name = str(folder.relative_to(runner.workdir) / str(step))
        expected[name] = digests_of(endings.arrays(before / name))
    return (
        []
        if found.items() >= expected.items()
        else [f"restored other arrays than {[*expected]}: of {[*found]}"]
    )


def _resume(runner, expected, outcome, *flags, complete=False, locked=False):
    """The outcome after the same command has run to its end, and what is left was compared; before, too, if it was complete.

    `locked`: the disk may not have let the run before remove its lock.
    """
    if complete:
        _compare(runner, expected, outcome, locked=locked)
    outcome.fail(runner.left())
    latest = _latest(runner.workdir)
    ended = runner.run(*flags)
    outcome.facts += _RESUMING.findall(ended.output)
    outcome.fail(_bad_end(ended, 0) + _bad_resume(ended, latest))
    return _compare(runner, expected, outcome)


def _bad_resume(ended, latest):
    """What is wrong with the steps at which a run resumed: they are not those of its latest checkpoints."""
    found, expected = sorted(map(int, _RESUMING.findall(ended.output))), sorted(latest.values())
    return (
        []
        if found == expected
        else [f"resumed at steps {found}, not at those of its checkpoints, {expected}"]
    )


def _compare(runner, expected, outcome, **allowed):
    outcome.fail(runner.left())
    outcome.fail(endings.read(runner.workdir).differences(expected, **allowed))
    return outcome


def _bad_end(ended: Ended, *codes: int, why: str = "") -> list[str]:
    """What is wrong with the way in which a process ended: it has another exit code, a traceback, or no line that says why."""
    problems = []
    if ended.hung:
        problems.append("it did not end by itself")
    if ended.traceback and not (ended.code in _CUT and _STARTING.search(ended.output)):
        problems.append(f"traceback: {_last_line(ended)}")
    if ended.code not in codes:
        problems.append(f"exit code {ended.code}: {_last_line(ended)}")
    if ended.code == 1 and (len(ended.errors) != 1 or why not in ended.errors[0]):
        problems.append(f"exit code 1 without one line that names {why or 'the error'}: {ended.errors}")
    return problems


def _last_line(ended):
    return (ended.output.strip().splitlines() or ["no output"])[-1]


def _note(runner):
    """What the victim wrote; empty if it ended before."""
    return json.loads(runner.note.read_text()) if runner.note.exists() else {}


def _flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :] if content else b"\0"
