"""Runs of seconds, one for each system that is trained and one of files: what the campaign disturbs."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from cfmlc_jax.errors import RunError
from scripts.faults.victim import Fault

ROOT = Path(__file__).parents[2]
# In the environment of every process of a trial, so that those left over can be found.
MARK = "CFMLC_FAULT_TRIAL"
TIMEOUT = 900


PICTURES = "pictures"  # the folder in that of the data


def write_photos(folder: Path) -> None:
    """Write tables and pictures for `configs/own_images.py`: 48 of training, 16 of validation, three classes of colour."""
    chance = np.random.default_rng(0)
    (folder / PICTURES).mkdir(parents=True)
    for split, count in (("train", 48), ("val", 16)):
        lines = []
        for number in range(count):
            present = [number % 3] + ([(number + 1) % 3] if number % 4 == 0 else [])
            pixels = chance.integers(0, 100, (32, 32, 3), np.uint8)
            pixels[..., present] += 120
            name = f"{PICTURES}/{split}-{number}.png"
            Image.fromarray(pixels).save(folder / name)
            lines.append(f"{name},{';'.join(('red', 'green', 'blue')[channel] for channel in present)}\n")
        (folder / f"{split}.csv").write_text("".join(lines))


@dataclass(frozen=True)
class Subject:
    """A configuration that trains in seconds.

    write_data: writes the files that it reads into a folder; None: its data are in the package.
    """

    name: str
    config: str
    changes: tuple[str, ...]
    write_data: Callable[[Path], None] | None = None

    def command(self, workdir: Path, data: Path, *flags: str) -> list[str]:
        """The arguments of `cfmlc_jax.main`."""
        config = f"--config={ROOT / 'configs' / self.config}"
        changes = [f"--config.{change}" for change in self.changes]
        if self.write_data is not None:
            changes.append(f"--config.data.root={data}")
        return [config, *changes, f"--workdir={workdir}", *flags]


_SCENES = (
    "data.scenes.num_train=160",
    "data.scenes.num_test=40",
    "data.test_splits=('test_iid','test_conflict')",
    "views.image_size=32",
    "train.batch_size=8",
    "train.log_every=3",
    "train.checkpoint_every=7",
    "evaluate.batch_size=16",
    "effect.alphas=(0.5,)",
)
SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("pat", "scenes.py:smoke", _SCENES),
        Subject(
            "deconfound",
            "longtail_digits.py:smoke",
            (
                "data.longtail.largest=60",
                "data.longtail.ratio=0.1",
                "train.epochs=2",
                "optim.sgd.milestones=(2,)",
                "train.batch_size=16",
                "train.log_every=3",
                "train.checkpoint_every=5",
                "evaluate.batch_size=96",
            ),
        ),
        Subject(
            "cgn",
            "cgn_digits.py",
            (
                "generator.latent=4",
                "generator.ngf=4",
                "critic.ndf=8",
                "train.batch_size=160",
                "train.epochs=1",
                "train.log_every=3",
                "train.checkpoint_every=7",
                "counterfactuals.num_records=600",
                "counterfactuals.shard_size=200",
                # The second one is hit between its three checkpoints, too.
                "classifiers.names=('decorrelated','invariant')",
                "classifiers.epochs=3",
                "classifiers.batch_size=200",
                "evaluate.batch_size=200",
            ),
        ),
        Subject(
            "photos",
            "own_images.py",
            (
                "data.test_splits=('val',)",
                "model.name=resnet_small",
                "model.dtype=float32",
                "views.image_size=32",
                "train.batch_size=8",
                "train.epochs=6",
                "train.early_stop=False",
                "train.log_every=3",
                "train.checkpoint_every=7",
                "evaluate.batch_size=16",
            ),
            write_photos,
        ),
    )
}


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code (negative: the signal), its output, the seconds it took.

    hung: it did not end by itself.
    """

    code: int
    output: str
    seconds: float
    hung: bool = False

    @property
    def errors(self) -> list[str]:
        """The lines that say why it ended."""
        return [line for line in self.output.splitlines() if line.startswith("error: ")]

    @property
    def warnings(self) -> list[str]:
        """The lines that warn of something."""
        return [line for line in self.output.splitlines() if line.startswith("warning: ")]

    @property
    def traceback(self) -> bool:
        """Whether a Python traceback was printed."""
        return "Traceback (most recent call last)" in self.output


# A shell's commands in a namespace of mounts of their own, which needs no rights: the folder $1 is a disk as said by $0, on
# which the other arguments run; what is there when they have ended is copied into $2, because the disk ends with them.
_ON_DISK = """
case $0 in
read-only) mount --bind "$1" "$1" && mount -o remount,ro,bind "$1" || exit 125 ;;
*) mount -t tmpfs -o "$0" none "$1" || exit 125 ;;
esac
disk=$1 rest=$2
shift 2
"$@"
code=$?
cp -a "$disk" "$rest" && exit $code || exit 125
"""


def on_disk(disk: str, folder: Path, rest: Path) -> list[str]:
    """The words before a command that give it a folder on a disk of its own.

    Args:
        disk: as of `Runner.run_on_disk`.
        folder: exists; only the command sees the disk there.
        rest: a new folder, into which all that the command left on the disk is copied.
    """
    return ["unshare", "--mount", "--map-root-user", "sh", "-c", _ON_DISK, disk, str(folder), str(rest)]


class Runner:
    """Starts commands of one trial.

    Attributes:
        folder: of the trial; the workdir, the note of the victim and the output of each command are in it.
        data: the folder of the subject's files, the same for all trials, because a run's configuration names it.
        programs: the folder of compiled programs that all trials share.
    """

    def __init__(self, subject: Subject, folder: Path, programs: Path):
        self.subject, self.folder, self.programs = subject, folder, programs
        self.workdir, self.note = folder / "run", folder / "note.json"
        self.data = programs.with_name(f"data_of_{subject.name}")
        self.mark = str(folder)  # other campaigns may run at the same time
        self._blocks = shared_memory()
        self._started: list[subprocess.Popen] = []

    def environment(self, devices: int = 1, **variables: str) -> dict[str, str]:
        """The environment of the commands, with so many CPU devices."""
        kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
        flags = f"--xla_force_host_platform_device_count={devices}"
        return kept | {
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "JAX_COMPILATION_CACHE_DIR": str(self.programs),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1",
            "XLA_FLAGS": flags,
            "CFMLC_FAULT_NOTE": str(self.note),
            MARK: self.mark,
            **variables,
        }

    def restore_data(self) -> None:
        """Write the data of the subject, in place of what is there."""
        shutil.rmtree(self.data, ignore_errors=True)
        if self.subject.write_data is not None:
            self.subject.write_data(self.data)

    def start(
        self,
        *flags: str,
        fault: Fault | None = None,
        devices: int = 1,
        before: Sequence[str] = (),
        **variables: str,
    ) -> subprocess.Popen:
        """Start the training, with a fault or without; `before` are the words before its command."""
        if not self.data.exists():
            self.restore_data()
        program = ["-m", "cfmlc_jax.main"] if fault is None else ["-m", "scripts.faults.victim", fault.text()]
        # Not a pipe: processes that the command leaves behind would hold its other end.
        with self._output(len(self._started)).open("wb") as output:
            process = subprocess.Popen(
                [*before, sys.executable, *program, *self.subject.command(self.workdir, self.data, *flags)],
                env=self.environment(devices, **variables),
                cwd=ROOT,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        self._started.append(process)
        return process

    def run(self, *flags: str, fault: Fault | None = None, devices: int = 1, **variables: str) -> Ended:
        """Run the training to its end. A command that hangs is killed."""
        return self.finish(self.start(*flags, fault=fault, devices=devices, **variables))

    def run_on_disk(self, disk: str) -> Ended:
        """Run the training with the workdir on a disk of its own.

        Args:
            disk: the options of a tmpfs, such as "size=300k" or "nr_inodes=40"; or "read-only", with what is in the workdir.

        Raises:
            RunError: the system lets nobody mount in a namespace of its own.
        """
        self.workdir.mkdir(parents=True, exist_ok=True)
        rest = self.folder / "rest"
        ended = self.finish(self.start(before=on_disk(disk, self.workdir, rest)))
        if not rest.exists():
            raise RunError(
                f"cannot mount a disk of {disk} ({ended.output.strip()}); on a system that lets users mount in a namespace "
                "of their own (unshare --mount --map-root-user) the same command continues"
            )
        shutil.rmtree(self.workdir)
        rest.rename(self.workdir)
        return ended

    def finish(self, process: subprocess.Popen) -> Ended:
        """Wait for a command, and time it from this call."""
        since, hung = time.monotonic(), False
        try:
            process.wait(TIMEOUT)
        except subprocess.TimeoutExpired:
            hung = True
            process.kill()
            process.wait()
        output = self._output(self._started.index(process))
        with output.open("a") as file:
            file.write(
                f"\nexit code {process.returncode}{f', still running after {TIMEOUT} s' if hung else ''}\n"
            )
        text = output.read_text(errors="replace").rpartition("\nexit code ")[0]
        return Ended(process.returncode, text, time.monotonic() - since, hung)

    def stop(self) -> None:
        """Kill the commands that are still running: the campaign was interrupted."""
        for process in self._started:
            if process.poll() is None:
                process.kill()
                process.wait()

    def _output(self, number):
        return self.folder / f"output_{number}.txt"

    def left(self) -> list[str]:
        """What the trial's commands have left on this machine: processes, and shared memory that none uses any more."""
        processes = [f"process left: {line}" for line in survivors(self.mark)]
        return processes + [f"shared memory left: {name}" for name in sorted(unused(self._blocks))]


def survivors(mark: str, patience: float = 15.0) -> list[str]:
    """The command lines of processes of a trial that are still alive after some seconds."""
    until = time.monotonic() + patience
    while True:
        alive = _marked(mark)
        if not alive or time.monotonic() > until:
            return alive
        time.sleep(0.2)


def _marked(mark: str) -> list[str]:
    wanted = f"{MARK}={mark}".encode()
    alive = []
    for process in Path("/proc").iterdir():
        if not process.name.isdecimal():
            continue
        try:
            if wanted in (process / "environ").read_bytes().split(b"\0"):
                alive.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace"))
        except OSError:  # ended in between, or another user's
            continue
    return alive


def shared_memory() -> set[str]:
    """Names of the blocks of shared memory on this machine."""
    folder = Path("/dev/shm")
    return {path.name for path in folder.iterdir()} if folder.is_dir() else set()


def unused(before: set[str], patience: float = 15.0) -> set[str]:
    """Blocks of shared memory that are new, and that no process uses for some seconds.

    Blocks of other programs are unused for moments, too, on their way from one process to the other.
    """
    until = time.monotonic() + patience
    left = shared_memory() - before
    while True:
        left = (left & shared_memory()) - mapped(left)
        if not left or time.monotonic() > until:
            return left
        time.sleep(0.2)


def mapped(names: Iterable[str]) -> set[str]:
    """Which of these blocks a living process uses. The creator of a semaphore knows it by another name: inodes decide."""
    inodes: set[int] = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            lines = maps.read_text().splitlines()
        except OSError:
            continue
        inodes |= {int(line.split()[4]) for line in lines if "/dev/shm/" in line}
    used = set()
    for name in names:
        try:
            if (Path("/dev/shm") / name).stat().st_ino in inodes:
                used.add(name)
        except FileNotFoundError:  # removed in between
            used.add(name)
    return used
