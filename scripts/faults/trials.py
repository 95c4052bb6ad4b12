"""The trials of each campaign: a fault, how the run ends, and whether it ends like one left alone after it is resumed."""

import json
import random
import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cfmlc_jax.engine.writers import METRICS
from cfmlc_jax.errors import RunError
from scripts.faults import ending as endings
from scripts.faults.ending import Ending
from scripts.faults.subjects import PICTURES, Ended, Runner
from scripts.faults.victim import Fault

SURVIVED, WARNED, REFUSED, UNTOUCHED, LOST = "survived", "warned", "refused", "untouched", "lost"
# How soon a run of several processes must end when one of them dies, and when it dies before all have connected.
SECONDS_TO_END, SECONDS_TO_CONNECT = 60, 330
PROCESSES = (2, 4)  # in runs of which one is killed
# The campaigns that need a run of files, a second run with another seed, and runs of several processes left alone.
DATA, DAMAGE, OF_MANY = "data", "damage", "processes"
_WORKERS = "--config.data.workers=2"
# The exit codes of a run that was hit. A signal that comes before the command has its handlers ends it as any program.
_CODES = {
    "SIGKILL": (-signal.SIGKILL,),
    "SIGTERM": (128 + signal.SIGTERM, -signal.SIGTERM),
    "SIGINT": (128 + signal.SIGINT, -signal.SIGINT),
    "worker": (0, 1),  # 0: it had delivered all
    "delay": (0,),
}
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
        damaged file restored it ended like the undisturbed one; "untouched": the fault came after the end, and the run
        had ended like the undisturbed one; "lost": anything else.
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

    undisturbed: of one process.
    half: the workdir of a run that was killed in its second half; trials copy it.
    count: of random trials of each kind; 0: all that there are.
    other: as `half`, of a run with another seed, for `damage`.
    of_many: how runs of several processes end that are left alone, for `processes`.
    """

    undisturbed: Undisturbed
    half: Path
    count: int
    seed: int
    other: Path | None = None
    of_many: Mapping[int, Ending] = field(default_factory=dict)


def moments(setting: Setting) -> list[Trial]:
    """Signals at random moments of the run, every fourth one with processes that read images."""
    chance = random.Random(setting.seed)
    trials = []
    for what in ("SIGKILL", "SIGTERM", "SIGINT"):
        for number in range(setting.count or 100):
            share = chance.uniform(0, 1)
            after, flags = share * setting.undisturbed.seconds, list[str]()
            name = f"{what} after {share:.3f} of the time"
            if number % 4 == 3:
                # They take longer to start than so small a run gains by them.
                after, flags, name = 1.3 * after, [_WORKERS], f"{name}, with two workers"
            trials.append(Trial(name, _hit(setting, Fault(what, after=after), *flags)))
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
    """Files of a killed run: each one damaged, those of the latest checkpoints torn by a power cut, or of another run."""
    chance = random.Random(setting.seed)
    own = [
        path for path in setting.half.rglob("*") if "checkpoints" not in path.relative_to(setting.half).parts
    ]
    latest = _latest(setting.half)
    files = [file for path in (*latest, *own) for file in (path, *path.rglob("*"))]
    names = sorted({str(path.relative_to(setting.half)) for path in files if path.is_file()} - {".lock"})
    damages = [(name, damage) for name in names for damage in DAMAGES]
    if setting.count:
        damages = chance.sample(damages, min(setting.count, len(damages)))
    trials = [
        Trial(
            f"{name}: {damage}",
            _changed(setting, name, lambda path, damage=damage: damage_file(path, damage)),
        )
        for name, damage in damages
    ]
    for path in latest:
        name = str(path.relative_to(setting.half))
        for number in range(setting.count or 10):
            tear = random.Random(f"{setting.seed} {number}")
            change = lambda path, tear=tear: _tear(path, tear)  # noqa: E731
            trials.append(Trial(f"{name} torn by power cut {number}", _changed(setting, name, change)))
    *_, before, _ = sorted(_steps(setting.half / "checkpoints"), key=lambda path: int(path.name))
    sources = {"the checkpoint before": before}
    if setting.other is not None:
        sources["another run"] = _latest(setting.other)[0]
    for whose, source in sources.items():
        for part in sorted(source.iterdir()):
            name = latest[0].relative_to(setting.half) / part.name
            if (setting.half / name).exists():
                change = lambda path, part=part: _put(part, path)  # noqa: E731
                trials.append(Trial(f"{name} of {whose}", _changed(setting, str(name), change)))
    if setting.other is not None:
        last = latest[0].relative_to(setting.half)
        for name, why in (
            (str(last), last.name),
            ("config.json", "another configuration"),
            (METRICS, METRICS),
        ):
            change = lambda path, name=name: _put(setting.other / name, path)  # noqa: E731
            trials.append(Trial(f"{name} of another run", _changed(setting, name, change, why)))
    return trials


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
    for count in PROCESSES:
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
    for name, after in (("a worker is killed when it starts", 0.0), ("a worker is killed", 0.7 * seconds)):
        trials.append(Trial(name, _hit(setting, Fault("worker", after=after), _WORKERS)))
    trials.append(Trial("a second run in the workdir", _second(setting)))
    elsewhere = {
        "with two workers": Place(flags=(_WORKERS,)),
        "on 2 devices": Place(devices=2),
        "on 8 devices": Place(devices=8),
        "on 4 devices, fsdp 4": Place(devices=4, flags=("--config.mesh.fsdp=4",)),
        "by two processes": Place(processes=2),
    }
    for name, place in elsewhere.items():
        trials.append(Trial(f"resumed {name}", _resumed_at(setting, place)))
        trials.append(Trial(f"begun {name}", _begun_at(setting, place)))
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


def undisturbed(runner: Runner) -> Undisturbed:
    """Run a subject without a fault.

    Raises:
        RunError: it does not end with exit code 0.
    """
    ended = runner.run(fault=Fault())
    _require_success(runner, ended)
    return Undisturbed(endings.read(runner.workdir), ended.seconds, _note(runner)["events"])


def undisturbed_many(runner: Runner, count: int) -> Ending:
    """The ending of a run of a subject by several processes without a fault.

    Raises:
        RunError: one does not end with exit code 0.
    """
    for ended in [runner.finish(process) for process in _start_many(runner, count)]:
        _require_success(runner, ended)
    return endings.read(runner.workdir)


def half_way(runner: Runner, events: list[str], *flags: str) -> None:
    """Kill a run of a subject in its second half, in training, when it has two checkpoints.

    Raises:
        RunError: it ends by itself.
    """
    saves = [number for number, event in enumerate(events) if "checkpoints" in event]
    ended = runner.run(*flags, fault=Fault("SIGKILL", event=saves[int(0.7 * len(saves))]))
    if ended.code != -signal.SIGKILL:
        raise RunError(
            f"the run of {runner.subject.name} was not killed: {_last_line(ended)}; see {runner.folder}/output.txt"
        )


def _require_success(runner, ended):
    if ended.code:
        raise RunError(
            f"{runner.subject.name} does not run undisturbed: {_last_line(ended)}; see {runner.folder}/output.txt"
        )


def _steps(folder):
    """The checkpoints in a folder."""
    return [path for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []


def _latest(workdir):
    """The latest checkpoint of a run, and those of the runs in its folder."""
    folders = sorted(workdir.rglob("checkpoints"), key=lambda path: len(path.parts))
    return [max(_steps(folder), key=lambda path: int(path.name)) for folder in folders if _steps(folder)]


def _hit(setting, fault, *flags):
    """A run with a fault, which is then resumed."""

    def run(runner):
        ended = runner.run(*flags, fault=fault)
        note = _note(runner)
        without_effect = "events" in note or (fault.what == "worker" and ended.code == 0)
        outcome = Outcome(UNTOUCHED if without_effect else SURVIVED, note.get("place", ""))
        if "events" in note:
            outcome.fail(_bad_end(ended, 0))
        elif "place" in note:
            why = "a worker process that reads images died" if fault.what == "worker" else ""
            outcome.fail(_bad_end(ended, *_CODES.get(fault.what, (0, 1)), why=why))
        else:
            outcome.fail([f"ended before the fault: exit code {ended.code}: {_last_line(ended)}"])
        return _resume(runner, setting.undisturbed.ending, outcome, *flags, complete=ended.code == 0)

    return run


def _changed(setting, name, change, why=""):
    """A resumed run, of which a file or a folder was changed before; if it is refused, the error says why, or names it."""

    def run(runner):
        shutil.copytree(setting.half, runner.workdir)
        path, expected = runner.workdir / name, setting.undisturbed.ending
        change(path)
        outcome, ended = Outcome(), runner.run()
        if ended.code == 0:
            lost = None
            if path.name == METRICS and any(METRICS in line for line in ended.warnings):
                outcome.verdict = WARNED
                # Lines after the checkpoint are written anew.
                steps = [int(step.name) for step in _steps((setting.half / name).parent / "checkpoints")]
                lost = name, max(steps, default=0)
            return _compare(runner, expected, outcome, aside=True, lost=lost)
        outcome.verdict = REFUSED
        outcome.fail(_bad_end(ended, 1, why=why or path.name))
        _put(setting.half / name, path)
        return _resume(runner, expected, outcome)

    return run


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
            shutil.copytree(setting.half, runner.workdir)
            harm.change(runner.data / harm.name)
            ended = runner.run()
        # During the run the images may have been read before.
        outcome = Outcome(REFUSED if ended.code else SURVIVED)
        outcome.fail(_bad_end(ended, *((0, 1) if during else (1,)), why=harm.why))
        runner.restore_data()
        return _resume(runner, setting.undisturbed.ending, outcome, complete=ended.code == 0)

    return run


def _on_disk(setting, disk):
    """A run on a disk that lacks something; it resumes, with what is left, on one that lacks nothing."""

    def run(runner):
        if disk == "read-only":
            shutil.copytree(setting.half, runner.workdir)
        ended = runner.run_on_disk(disk)
        outcome = Outcome(SURVIVED if ended.code else UNTOUCHED)
        outcome.fail(_bad_end(ended, *((1,) if disk == "read-only" else (0, 1))))
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


def _one_of_many(setting, count, victim, share):
    """A run of several processes, one of which is killed; all must end, and the same processes resume."""

    def run(runner):
        expected = setting.of_many[count]
        started = _start_many(runner, count)
        time.sleep(share * setting.undisturbed.seconds * count)
        started[victim].kill()
        since = time.monotonic()
        ends = [runner.finish(process) for process in started]
        seconds = time.monotonic() - since
        killed = ends.pop(victim)
        outcome = Outcome(SURVIVED if killed.code else UNTOUCHED)
        outcome.fail(_bad_end(killed, *_CODES["SIGKILL"], 0))
        errors = [line for ended in ends for line in ended.errors]
        waited = any("did not all connect" in line for line in errors)
        if seconds > (SECONDS_TO_CONNECT if waited else SECONDS_TO_END):
            outcome.fail([f"the others ended {seconds:.0f} s after it"])
        codes = {ended.code for ended in ends}
        if not codes <= {0, 1} or any(ended.hung or ended.traceback for ended in ends):
            outcome.fail([f"exit codes {codes} of the others: {_last_line(ends[0])}"])
        if 1 in codes and not waited and not any(f"process {victim} " in line for line in errors):
            outcome.fail([f"no error names process {victim}: {errors}"])
        outcome.fail(runner.left())
        if 1 not in codes:
            _compare(runner, expected, outcome)
        return _compare(runner, expected, _finish_many(runner, outcome, count))

    return run


def _finish_many(runner, outcome, count, *flags):
    for ended in [runner.finish(process) for process in _start_many(runner, count, *flags)]:
        if ended.code:
            outcome.fail([f"resumed: exit code {ended.code}: {_last_line(ended)}"])
    return outcome


def _start_many(runner, count, *flags):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"--coordinator=127.0.0.1:{free.getsockname()[1]}"
    return [
        runner.start(*flags, address, f"--num_processes={count}", f"--process_id={number}")
        for number in range(count)
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
        outcome.fail(_bad_end(second, 1, why=str(runner.workdir)))
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
        """Start the run there, and return its processes."""
        if self.processes > 1:
            return _start_many(runner, self.processes, *self.flags)
        return [runner.start(*self.flags, devices=self.devices)]


def _resumed_at(setting, place):
    """A killed run that is resumed elsewhere."""

    def run(runner):
        shutil.copytree(setting.half, runner.workdir)
        outcome = Outcome()
        for ended in [runner.finish(process) for process in place.start(runner)]:
            outcome.fail(_bad_end(ended, 0))
        return _compare(runner, setting.undisturbed.ending, outcome, rounded=place.rounded)

    return run


def _begun_at(setting, place):
    """A run that is killed elsewhere, when it has a checkpoint that `setting.half` has, too; and is resumed on one device."""
    saved = _latest(setting.half)[-1].relative_to(setting.half)

    def run(runner):
        started = place.start(runner)
        while not (runner.workdir / saved).exists() and all(process.poll() is None for process in started):
            time.sleep(0.01)
        for process in started:
            process.kill()
        outcome = Outcome()
        for ended in [runner.finish(process) for process in started]:
            outcome.fail(_bad_end(ended, *_CODES["SIGKILL"]))
        return _resume(runner, setting.undisturbed.ending, outcome, rounded=place.rounded)

    return run


def _resume(runner, expected, outcome, *flags, complete=False, rounded=False):
    """The outcome after the same command has run to its end, and what is left was compared; before, too, if it was complete."""
    if complete:
        _compare(runner, expected, outcome, rounded=rounded)
    outcome.fail(runner.left())
    ended = runner.run(*flags)
    if ended.code:
        outcome.fail([f"resumed: exit code {ended.code}: {_last_line(ended)}"])
        return outcome
    return _compare(runner, expected, outcome, rounded=rounded)


def _compare(runner, expected, outcome, **allowed):
    outcome.fail(runner.left())
    outcome.fail(endings.read(runner.workdir).differences(expected, **allowed))
    return outcome


def _bad_end(ended: Ended, *codes: int, why: str = "") -> list[str]:
    """What is wrong with the way in which a process ended: it has another exit code, a traceback, or no line that says why."""
    problems = []
    if ended.hung:
        problems.append("it did not end by itself")
    if ended.traceback:
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
