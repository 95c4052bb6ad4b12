"""The trials of each campaign: a fault, how the run ends, and whether it ends like one left alone after it is resumed."""

import json
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from scripts.faults import ending as endings
from scripts.faults.ending import Ending
from scripts.faults.subjects import PICTURES, Ended, Runner
from scripts.faults.victim import Fault

SURVIVED, WARNED, REFUSED, UNTOUCHED, LOST = "survived", "warned", "refused", "untouched", "lost"
# How soon a run of several processes must end when one of them dies, and when it dies before all have connected.
SECONDS_TO_END, SECONDS_TO_CONNECT = 60, 330
METRICS = "metrics.jsonl"
DATA = "data"  # the campaign that needs a run of files
_SIGNALS = {"SIGKILL": -signal.SIGKILL, "SIGTERM": 128 + signal.SIGTERM, "SIGINT": 128 + signal.SIGINT}
DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "one bit flipped": lambda content: _flipped(content),
    "cut in half": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "zeros": lambda content: bytes(len(content)),
    "removed": lambda content: None,
}


@dataclass(frozen=True)
class Undisturbed:
    """A run that was left alone: what it left, the seconds it took, and its changes of files in order."""

    ending: Ending
    seconds: float
    events: list[str]


@dataclass
class Outcome:
    """Of a trial.

    verdict: "survived": resumed, the run ended like the undisturbed one; "warned": likewise, but for the lines of
        metrics.jsonl, of which it said that they are lost; "refused": it ended with one line that says why, and with the
        damaged file restored it ended like the undisturbed one; "untouched": the fault came after the end; "lost":
        anything else.
    place: what the process was doing when it was hit.
    problems: why it is "lost".
    seconds: what the trial took.
    """

    verdict: str = SURVIVED
    place: str = ""
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def fail(self, problems: Sequence[str]) -> None:
        """Count the trial as lost if there are problems."""
        if problems:
            self.verdict = LOST
            self.problems += problems


@dataclass(frozen=True)
class Trial:
    """One fault for one subject: `run` does it with a runner of an empty folder."""

    name: str
    run: Callable[[Runner], Outcome]


@dataclass(frozen=True)
class Setting:
    """What the trials of a subject are made from.

    half: the workdir of a run that was killed in its second half; trials copy it.
    count: of random trials of each kind; 0: all that there are.
    """

    undisturbed: Undisturbed
    half: Path
    count: int
    seed: int


def moments(setting: Setting) -> list[Trial]:
    """Signals at random moments of the run."""
    chance = random.Random(setting.seed)
    shares = [(what, chance.uniform(0, 1)) for what in _SIGNALS for _ in range(setting.count or 100)]
    return [
        Trial(
            f"{what} after {share:.3f} of the time",
            _hit(setting, Fault(what, after=share * setting.undisturbed.seconds)),
        )
        for what, share in shares
    ]


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
    """Each file of a killed run and of its latest checkpoint: flipped, cut, emptied, zeroed, removed; and parts of the
    checkpoint that are those of the one before."""
    steps = [path for path in (setting.half / "checkpoints").iterdir() if path.name.isdecimal()]
    *_, before, latest = sorted(steps, key=lambda path: int(path.name))
    own = [
        path for path in setting.half.rglob("*") if "checkpoints" not in path.relative_to(setting.half).parts
    ]
    files = sorted(path for path in (*latest.rglob("*"), *own) if path.is_file() and path.name != ".lock")
    names = [(path.relative_to(setting.half), damage) for path in files for damage in DAMAGES]
    if setting.count:
        names = random.Random(setting.seed).sample(names, min(setting.count, len(names)))
    trials = [Trial(f"{path}: {damage}", _damaged(setting, path, damage)) for path, damage in names]
    parts = sorted(path.name for path in latest.iterdir() if (before / path.name).exists())
    return trials + [
        Trial(f"{name} of the checkpoint before", _mixed(setting, before, latest, name)) for name in parts
    ]


def disks(setting: Setting) -> list[Trial]:
    """Small disks, on which the C++ code that writes arrays fails, too: without room, without inodes, read-only."""
    files = [path for path in setting.half.rglob("*") if path.is_file()]
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
    """Runs of two and four processes, of which one is killed at a random moment."""
    chance = random.Random(setting.seed)
    trials = []
    for count in (2, 4):
        for _ in range(setting.count or 10):
            victim, share = chance.randrange(count), chance.uniform(0.2, 0.9)
            name = f"process {victim} of {count} killed after {share:.3f} of the time"
            trials.append(Trial(name, _one_of_many(setting, count, victim, share)))
    return trials


def surroundings(setting: Setting) -> list[Trial]:
    """Slow disks, clocks that jump, a killed worker, a second run in the workdir, other devices, workers and processes."""
    seconds = setting.undisturbed.seconds
    faults = {
        "every change of a file takes 0.2 s more": Fault("delay", seconds=0.2),
        "the clock jumps back by a day": Fault("clock", after=0.6 * seconds, seconds=-86400.0),
        "the clock jumps ahead by a day": Fault("clock", after=0.6 * seconds, seconds=86400.0),
    }
    trials = [Trial(name, _hit(setting, fault)) for name, fault in faults.items()]
    workers = "--config.data.workers=2"
    trials.append(Trial("a worker is killed", _hit(setting, Fault("worker", after=0.7 * seconds), workers)))
    trials.append(Trial("a second run in the workdir", _second(setting)))
    for name, flags, devices in (
        ("resumed with two workers", (workers,), 1),
        ("resumed on 2 devices", (), 2),
        ("resumed on 8 devices", (), 8),
        ("resumed on 4 devices, fsdp 4", ("--config.mesh.fsdp=4",), 4),
    ):
        trials.append(Trial(name, _elsewhere(setting, flags, devices)))
    return [*trials, Trial("resumed by two processes", _by_many(setting, 2))]


def data(setting: Setting) -> list[Trial]:
    """Pictures that vanish or break during a run, pictures and tables that do while it is not running."""
    picture, table = f"{PICTURES}/train-7.png", "train.csv"
    pictures: dict[str, tuple[str, Callable[[Path], object]]] = {
        "a picture is removed": (picture, lambda path: path.unlink()),
        "a picture is cut in half": (picture, lambda path: damage_file(path, "cut in half")),
        "all pictures are moved away": (PICTURES, lambda path: path.rename(path.with_name("elsewhere"))),
    }
    tables: dict[str, tuple[str, Callable[[Path], object]]] = {
        "a label changes": (
            table,
            lambda path: _edit(path, lambda lines: [*lines[:-1], f"{lines[-1]};red"]),
        ),
        "a line is removed": (table, lambda path: _edit(path, lambda lines: lines[:-1])),
        "a class is added": (
            table,
            lambda path: _edit(path, lambda lines: [*lines[:-1], f"{lines[-1]};cyan"]),
        ),
        "the table is removed": (table, lambda path: path.unlink()),
    }
    trials = [
        Trial(f"{name} during the run", _harmed(setting, *harm, during=True))
        for name, harm in pictures.items()
    ]
    trials += [
        Trial(f"{name} before it is resumed", _harmed(setting, *harm, during=False))
        for name, harm in (pictures | tables).items()
    ]
    return trials


CAMPAIGNS: dict[str, Callable[[Setting], list[Trial]]] = {
    "moments": moments,
    "changes": changes,
    "errors": errors,
    "damage": damage,
    "disks": disks,
    "processes": processes,
    "surroundings": surroundings,
    DATA: data,
}


def undisturbed(runner: Runner, *flags: str) -> Undisturbed:
    """Run a subject without a fault.

    Raises:
        RuntimeError: it does not end with exit code 0.
    """
    ended = runner.run(*flags, fault=Fault())
    if ended.code:
        raise RuntimeError(f"{runner.subject.name} does not run undisturbed:\n{ended.output}")
    return Undisturbed(endings.read(runner.workdir), ended.seconds, _note(runner)["events"])


def half_way(runner: Runner, events: list[str]) -> None:
    """Kill a run of a subject in its second half, in training, when it has two checkpoints."""
    saves = [number for number, event in enumerate(events) if "checkpoints" in event]
    ended = runner.run(fault=Fault("SIGKILL", event=saves[int(0.7 * len(saves))]))
    if ended.code != -signal.SIGKILL:
        raise RuntimeError(f"{runner.subject.name} was not killed: exit code {ended.code}\n{ended.output}")


def _hit(setting, fault, *flags):
    """A run with a fault, which is then resumed."""

    def run(runner):
        ended = runner.run(*flags, fault=fault)
        note = _note(runner)
        outcome = Outcome(UNTOUCHED if "events" in note else SURVIVED, note.get("place", ""))
        outcome.fail(_bad_end(ended, _SIGNALS.get(fault.what, 1)))
        return _resume(runner, setting.undisturbed.ending, outcome, *flags)

    return run


def _damaged(setting, path, name):
    """A resumed run, of which one file was damaged before."""

    def run(runner):
        shutil.copytree(setting.half, runner.workdir)
        file = runner.workdir / path
        content = file.read_bytes()
        damage_file(file, name)
        outcome, ended = Outcome(), runner.run()
        if ended.code == 0:
            if path.name != METRICS or not any(METRICS in line for line in ended.warnings):
                return _compare(runner, setting.undisturbed.ending, outcome)
            outcome.verdict = WARNED
            return _compare(runner, setting.undisturbed.ending, outcome, without=METRICS)
        outcome.verdict = REFUSED
        outcome.fail(_bad_end(ended, 1))
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return _resume(runner, setting.undisturbed.ending, outcome)

    return run


def _mixed(setting, before, latest, name):
    """A resumed run, of whose latest checkpoint one part is that of the one before."""

    def run(runner):
        shutil.copytree(setting.half, runner.workdir)
        part = runner.workdir / "checkpoints" / latest.name / name
        if part.is_dir():
            shutil.rmtree(part)
            shutil.copytree(before / name, part)
        else:
            shutil.copyfile(before / name, part)
        return _resume(runner, setting.undisturbed.ending, Outcome())

    return run


def _harmed(setting, name, harm, *, during):
    """A run whose data are harmed: it ends by itself, or with a line that names what is wrong, and resumes with good data."""

    def run(runner):
        runner.restore_data()
        if during:
            process = runner.start()
            time.sleep(0.6 * setting.undisturbed.seconds)
            harm(runner.data / name)
            ended = runner.finish(process)
        else:
            shutil.copytree(setting.half, runner.workdir)
            harm(runner.data / name)
            ended = runner.run()
        outcome = Outcome()
        if ended.code:
            outcome.verdict = REFUSED
            outcome.fail(_bad_end(ended, 1))
            if not any(Path(name).stem in line for line in ended.errors):
                outcome.fail([f"no error names {name}: {_last_line(ended)}"])
        runner.restore_data()
        return _resume(runner, setting.undisturbed.ending, outcome)

    return run


def _on_disk(setting, disk):
    """A run on a disk that lacks something; it resumes, with what is left, on one that lacks nothing."""

    def run(runner):
        if disk == "read-only":
            shutil.copytree(setting.half, runner.workdir)
        ended = runner.run_on_disk(disk)
        outcome = Outcome(SURVIVED if ended.code else UNTOUCHED)
        outcome.fail(_bad_end(ended, 1))
        return _resume(runner, setting.undisturbed.ending, outcome)

    return run


def damage_file(path: Path, name: str) -> None:
    """Damage a file; the name is one of `DAMAGES`."""
    damaged = DAMAGES[name](path.read_bytes())
    if damaged is None:
        path.unlink()
    else:
        path.write_bytes(damaged)


def _edit(path, change):
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


def _one_of_many(setting, count, victim, share):
    """A run of several processes, one of which is killed; all must end, and the same processes resume."""

    def run(runner):
        started = _start_many(runner, count)
        time.sleep(share * setting.undisturbed.seconds * count)
        started[victim].kill()
        since = time.monotonic()
        ends = [runner.finish(process) for process in started]
        seconds = time.monotonic() - since
        outcome = Outcome()
        waited = any("did not all connect" in line for ended in ends for line in ended.errors)
        if seconds > (SECONDS_TO_CONNECT if waited else SECONDS_TO_END):
            outcome.fail([f"the others ended {seconds:.0f} s after it"])
        for number, ended in enumerate(ends):
            if number != victim:
                outcome.fail(_bad_end(ended, 1))
        outcome.fail(runner.left())
        return _resume_many(runner, setting.undisturbed.ending, outcome, count)

    return run


def _by_many(setting, count):
    """A killed run of one process that several resume."""

    def run(runner):
        shutil.copytree(setting.half, runner.workdir)
        return _resume_many(runner, setting.undisturbed.ending, Outcome(), count)

    return run


def _resume_many(runner, expected, outcome, count):
    for ended in [runner.finish(process) for process in _start_many(runner, count)]:
        if ended.code:
            outcome.fail([f"resumed: exit code {ended.code}: {_last_line(ended)}"])
    # One process adds its numbers in another order than several.
    return _compare(runner, expected, outcome, same_numbers=False)


def _start_many(runner, count):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
    return [
        runner.start(address, f"--num_processes={count}", f"--process_id={number}") for number in range(count)
    ]


def _second(setting):
    """A run beside one that is in training: the second must be refused, and the first undisturbed."""

    def run(runner):
        first = runner.start()
        lock = runner.workdir / ".lock"
        while not lock.exists() and first.poll() is None:
            time.sleep(0.02)
        second = runner.run()
        outcome = Outcome()
        outcome.fail(_bad_end(second, 1) if second.code else ["the second run was not refused"])
        ended = runner.finish(first)
        outcome.fail([f"the first run ended with exit code {ended.code}"] if ended.code else [])
        return _compare(runner, setting.undisturbed.ending, outcome)

    return run


def _elsewhere(setting, flags, devices):
    """A killed run that is resumed on other devices, or with other workers."""

    def run(runner):
        shutil.copytree(setting.half, runner.workdir)
        return _resume(
            runner, setting.undisturbed.ending, Outcome(), *flags, devices=devices, same_numbers=devices == 1
        )

    return run


def _resume(runner, expected, outcome, *flags, devices=1, same_numbers=True):
    """The outcome after the command has run to its end, and what is left was compared; with flags, but for config.json."""
    outcome.fail(runner.left())
    ended = runner.run(*flags, devices=devices)
    if ended.code:
        outcome.fail([f"resumed: exit code {ended.code}: {_last_line(ended)}"])
        return outcome
    without = "config.json" if flags else None
    return _compare(runner, expected, outcome, same_numbers=same_numbers, without=without)


def _compare(runner, expected, outcome, *, same_numbers=True, without=None):
    outcome.fail(runner.left())
    found = endings.read(runner.workdir)
    outcome.fail(found.differences(expected, same_numbers=same_numbers, without=without))
    return outcome


def _bad_end(ended: Ended, expected: int) -> list[str]:
    """What is wrong with the way in which a process ended that was hit."""
    problems = []
    if ended.traceback:
        problems.append(f"traceback: {_last_line(ended)}")
    # 0: the fault changed nothing. A signal that comes before the command has its handlers ends it as any program.
    early = {128 - ended.code} if ended.code < 0 else set()
    if ended.code not in (0, expected) and expected not in early:
        problems.append(f"exit code {ended.code}: {_last_line(ended)}")
    if ended.code == 1 and not ended.errors:
        problems.append("exit code 1 without a line that says why")
    return problems


def _last_line(ended):
    return (ended.output.strip().splitlines() or ["no output"])[-1]


def _note(runner):
    return json.loads(runner.note.read_text()) if runner.note.exists() else {"place": "before the command"}


def _flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 16]) + content[middle + 1 :] if content else b"\0"
