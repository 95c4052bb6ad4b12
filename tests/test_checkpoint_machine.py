"""Checkpoints under any sequence of saves, kills, full disks, damages and restores."""

import contextlib
import errno
import gc
import math
import os
import shutil
import sys
import tempfile
import threading
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from fuzzing import cases
from hypothesis import Phase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from orbax.checkpoint._src.futures import future

from cfmlc_jax import checkpoint, digests
from cfmlc_jax.checkpoint import KEEP_LATEST, Checkpoints
from cfmlc_jax.errors import InputError, RunError, WriteError
from scripts.faults.trials import DAMAGES, damage_file
from scripts.faults.victim import changed

# Orbax ends a restore or a save that fails while others of its threads are at work: callbacks find no event loop, and
# coroutines are never awaited.
pytestmark = [
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:coroutine .* was never awaited:RuntimeWarning"),
]


class Disk:
    """Acts before the n-th change of a file below a folder; the changes are those that Python makes, in all threads.

    A kill is a copy of the folder as it was at that moment: nothing that the process would have done later is in it,
    neither its own tidying up nor a handler of exceptions. A full disk is an error at that change and all later ones.
    """

    def __init__(self):
        self._folder, self._left, self._copy, self._full = None, 0, None, False
        self.came_too_late = False
        sys.addaudithook(self._on_event)

    @contextlib.contextmanager
    def killed(self, folder, number, copy):
        """A block in which a copy of the folder is made before the change of this number, or at the end if there are less."""
        self._folder, self._left, self._copy = folder, number, copy
        try:
            yield
        finally:
            self._folder = None
            self.came_too_late = not copy.exists()
            if self.came_too_late:
                _copy_tree(folder, copy)

    @contextlib.contextmanager
    def full(self, folder, number):
        """A block in which nothing can be created from the change of this number on."""
        self._folder, self._left, self._full = folder, number, True
        try:
            yield
        finally:
            self._folder, self._full = None, False

    def _on_event(self, event, arguments):
        folder = self._folder
        if folder is None:
            return
        path = changed(event, arguments)
        if path is None:
            return
        # `rmtree` removes names relative to an open folder.
        if os.path.isabs(path) and not path.startswith(str(folder)):
            return
        self._left -= 1
        if self._full:
            if self._left < 0 and event not in ("os.remove", "os.rmdir"):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        elif self._left == -1:
            self._folder = None
            _copy_tree(folder, self._copy)


def _copy_tree(folder, copy):
    """Copy a folder in which files come and go meanwhile."""
    copy.mkdir()
    for path in list(folder.iterdir()):
        with contextlib.suppress(FileNotFoundError):
            if path.is_dir():
                _copy_tree(path, copy / path.name)
            else:
                shutil.copyfile(path, copy / path.name)


DISK = Disk()


@dataclass
class Saved:
    """What is known of a checkpoint; `suspect` if a file of it was damaged."""

    value: int
    rank: float | None = None
    suspect: bool = False


def arrays(value):
    return {"w": jnp.full((2,), float(value))}, {"step": jnp.int32(value)}


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


ABSTRACT = tuple(abstract(tree) for tree in arrays(0))
# Indices into lists whose length hypothesis does not know.
places = st.integers(0, 999)
moments = st.integers(0, 40)
if_saved = precondition(lambda self: self.saved)


class Training(RuleBasedStateMachine):
    """A training's use of its checkpoints, and a model of what must be there."""

    def __init__(self):
        super().__init__()
        self.base = Path(tempfile.mkdtemp())
        self.lives = 0
        self.value = self.step = 0
        self.saved: dict[int, Saved] = {}
        self.aside = 0
        # A kill between a save and the removal of old ones leaves more until the next save.
        self.tidy = True

    @initialize()
    def begin(self):
        self.run.mkdir()
        self.checkpoints = Checkpoints(self.folder)

    @property
    def run(self):
        return self.base / str(self.lives)

    @property
    def folder(self):
        return self.run / "checkpoints"

    def teardown(self):
        if hasattr(self, "checkpoints"):
            self.checkpoints.close()
        shutil.rmtree(self.base)

    def reopen(self):
        self.checkpoints.close()
        self.checkpoints = Checkpoints(self.folder)

    def new(self, steps=1):
        self.step += steps
        self.value += 1
        return self.step, Saved(self.value)

    def write(self, step, saved):
        model, training = arrays(saved.value)
        meta = checkpoint.signed({"value": saved.value, "config": {}, "class_names": ["a"]})
        self.checkpoints.save(step, model=model, training=training, meta=meta)
        self.checkpoints.wait()

    def kept(self, saved):
        """Those of the checkpoints that the documented rule keeps."""
        return {step: saved[step] for step in {*sorted(saved)[-KEEP_LATEST:], *best(saved)}}

    @rule(steps=st.integers(1, 2))
    def save(self, steps):
        step, saved = self.new(steps)
        self.write(step, saved)
        self.saved = self.kept(self.saved | {step: saved})
        self.tidy = True

    @if_saved
    @rule(rank=st.sampled_from([0.0, 0.5, 1.0, -1.0, math.nan]), place=places)
    def rank(self, rank, place):
        step = chosen(sorted(self.saved), place)
        self.checkpoints.rank(step, rank, {"seen": self.value})
        self.saved[step].rank = rank
        self.saved = self.kept(self.saved)
        self.tidy = True

    @rule(number=moments)
    def save_killed(self, number):
        step, saved = self.new()
        before = self.saved
        with self._killed(number):
            self.write(step, saved)
        assert step in self._steps() or not DISK.came_too_late
        self._disturbed(before, step, saved)

    @if_saved
    @rule(number=moments, rank=st.sampled_from([0.2, 2.0]))
    def rank_killed(self, number, rank):
        step = max(self.saved)
        before = self.saved
        with self._killed(number):
            self.checkpoints.rank(step, rank, {"seen": self.value})
        present = self._steps()
        assert self.kept(before | {step: Saved(0, rank)}).keys() <= present <= before.keys()
        self.saved = {step: one for step, one in before.items() if step in present}
        stored = checkpoint._progress(self.folder / str(step)).get("rank")
        assert stored in (rank, before[step].rank) or math.isnan(stored)
        assert stored == rank or not DISK.came_too_late
        self.saved[step].rank = stored
        self.tidy = self.saved == self.kept(self.saved)

    @contextlib.contextmanager
    def _killed(self, number):
        """A block during which the process is killed; the next process opens the folder."""
        with DISK.killed(self.run, number, self.base / str(self.lives + 1)):
            yield
        self.checkpoints.close()
        shutil.rmtree(self.run)
        self.lives += 1
        self.checkpoints = Checkpoints(self.folder)

    @rule(number=moments)
    def save_on_a_full_disk(self, number):
        step, saved = self.new()
        before = self.saved
        try:
            with DISK.full(self.run, number):
                self.write(step, saved)
            message = ""
        except WriteError as error:
            message = str(error)
        assert not message or (str(self.folder) in message and len(message.splitlines()) == 1)
        if message:
            release_orbax()
            self.reopen()  # a run ends here
        else:
            assert step in self._steps()
        self._disturbed(before, step, saved)

    def _disturbed(self, before, step, saved):
        """What a save that did not end may leave: the checkpoints from before, or the new one too."""
        present = self._steps()
        after = self.kept(before | {step: saved})
        assert before.keys() & after.keys() <= present <= before.keys() | {step}
        # Nothing is removed before the new one is complete.
        assert step in present or present == before.keys()
        self.saved = {step: one for step, one in (before | {step: saved}).items() if step in present}
        self.tidy = self.saved == self.kept(self.saved)
        if step not in present:
            self.step -= 1

    def files(self, step):
        folder = self.folder / str(step)
        return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())

    @if_saved
    @rule(place=places, file=places, how=st.sampled_from(sorted(DAMAGES)))
    def damage(self, place, file, how):
        step = chosen(sorted(self.saved), place)
        path = self.folder / str(step) / chosen(self.files(step), file)
        if how == "one bit flipped" and not (self.folder / str(step) / digests.FILE).exists():
            return  # the process was killed before it wrote them; a restore writes them
        damage_file(path, how)
        if path.name == "rank.json":
            self.saved[step].rank = None
        else:
            self.saved[step].suspect = True
        self.reopen()

    @rule()
    def restore(self):
        self.reopen()
        warnings = []
        model, training = ABSTRACT
        arguments = {"check": lambda path, meta: None, "warn": warnings.append}
        try:
            restored = self.checkpoints.restore_latest(model=model, training=training, **arguments)
        except RunError:
            assert all(one.suspect for one in self.saved.values())
            assert self.saved or self.aside
            # What it says to do: a new workdir.
            self.checkpoints.close()
            shutil.rmtree(self.run)
            self.aside, self.step, self.saved, self.tidy = 0, 0, {}, True
            self.begin()
            return
        if restored is None:
            assert not self.saved
            return
        model, training, meta = restored
        lost = [step for step in self.saved if step not in self._steps()]
        assert len(warnings) == len(lost)
        self.aside += len(lost)
        for step in lost:
            assert self.saved.pop(step).suspect
        self.step = max(self.saved)
        assert (self.folder / str(self.step) / digests.FILE).exists()
        saved = self.saved[self.step]
        assert meta["value"] == saved.value
        np.testing.assert_array_equal(model["w"], np.full(2, saved.value, np.float32))
        np.testing.assert_array_equal(training["step"], saved.value)
        assert meta.get("rank", math.nan) == saved.rank or saved.rank is None or math.isnan(saved.rank)

    @rule()
    def read_best(self):
        """What evaluation does, which changes nothing."""
        if not self.saved:
            with pytest.raises(InputError):
                checkpoint.find(self.run)
            return
        path = checkpoint.find(self.run)
        (step,) = best(self.saved)
        assert path == self.folder / str(step)
        saved = self.saved[step]
        try:
            meta, model = checkpoint.read_meta(path), checkpoint.read_model(path, ABSTRACT[0])
        except InputError:
            if not saved.suspect:
                raise
        else:
            assert meta["value"] == saved.value
            np.testing.assert_array_equal(model["w"], np.full(2, saved.value, np.float32))

    def _steps(self):
        return {int(path.name) for path in self.folder.iterdir() if path.name.isdecimal()}

    @invariant()
    def the_folder_is_as_documented(self):
        if not hasattr(self, "checkpoints"):
            return
        self.checkpoints.wait()
        names = {path.name for path in self.folder.iterdir()}
        assert names == {str(step) for step in self.saved}  # so nothing temporary either
        if self.tidy:
            assert len(names) <= KEEP_LATEST + 1
        assert self.checkpoints.latest_step() == max(self.saved, default=None)
        assert self.checkpoints.best_step() == next(iter(best(self.saved)), None)
        aside = self.run / "damaged"
        assert (len(list(aside.iterdir())) if aside.exists() else 0) == self.aside
        assert not list(self.run.rglob(".*"))


def release_orbax():
    """End the threads of a save that wait in vain, which would keep the process for five minutes."""
    waiting = [thread for thread in threading.enumerate() if isinstance(thread, future._SignalingThread)]
    for thread in waiting:
        thread.cancel()
    for thread in waiting:
        future.set_signals(thread._receive_signals, operation_id=thread._operation_id)
        threading.Thread.join(thread)


@pytest.fixture(autouse=True, scope="module")
def short_waits():
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setattr(checkpoint, "_STILL", 1.0)
        yield
        # What was cancelled is not for the next file's tests.
        warnings.simplefilter("ignore")
        gc.collect()


def best(saved) -> set[int]:
    """The step of the best checkpoint: of the highest rank, the latest of equal ones; of none ranked the latest."""
    ranked = {
        step: one.rank for step, one in saved.items() if one.rank is not None and not math.isnan(one.rank)
    }
    if not ranked:
        return {max(saved)} if saved else set()
    return {max(step for step, rank in ranked.items() if rank == max(ranked.values()))}


def chosen(items, place):
    return items[place % len(items)]


# Orbax ends a restore that fails while reads are under way; their callbacks find no event loop.
TestTraining = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")(
    Training.TestCase
)
# Sequences are short enough to be read as they are.
TestTraining.settings = cases(5, stateful_step_count=10, phases=[Phase.generate])


def test_a_sequence_with_every_rule():
    """The few generated sequences of the suite are short, and need not come to all of them."""
    training = Training()

    def apply(rule, *arguments):
        rule(training, *arguments)
        training.the_folder_is_as_documented()
        return sorted(training.saved), training.aside

    training.begin()
    apply(Training.save, 1)
    apply(Training.rank, 1.0, 0)
    apply(Training.save, 2)
    assert apply(Training.rank, 0.5, 1) == ([1, 3], 0)
    assert apply(Training.save_killed, 0) == ([1, 3], 0)
    assert apply(Training.save_killed, 999) == ([1, 3, 4], 0)
    assert apply(Training.save_on_a_full_disk, 2) == ([1, 3, 4], 0)
    apply(Training.read_best)
    assert apply(Training.restore) == ([1, 3, 4], 0)
    assert apply(Training.rank_killed, 0, 2.0) == ([1, 3, 4], 0)
    assert training.saved[4].rank is None
    # Step 3 is neither one of the latest nor the best any more, once the rank is stored.
    assert apply(Training.rank_killed, 999, 2.0) == ([3, 4], 0)
    apply(Training.damage, 1, training.files(4).index("meta/metadata"), "empty")
    assert apply(Training.restore) == ([3], 1)
    apply(Training.read_best)
    apply(Training.damage, 0, training.files(3).index("digests.json"), "cut in half")
    assert apply(Training.restore) == ([], 0)  # none was left, and a new folder is begun
    apply(Training.save, 1)
    apply(Training.restore)
    training.teardown()


@pytest.mark.parametrize("number", [0, 1])
def test_no_room_for_the_folder_or_the_first_file(number):
    """Orbax waits in vain for five minutes for the first, and raises the second again when it is closed."""
    training, start = Training(), time.monotonic()
    training.begin()
    training.save(1)
    with (
        pytest.raises(WriteError, match=r"checkpoints/2 cannot be written \(No space left"),
        DISK.full(training.run, number),
    ):
        training.write(2, Saved(2))
    training.checkpoints.close()
    assert time.monotonic() < start + 60
    release_orbax()
    training.checkpoints = Checkpoints(training.folder)
    training.the_folder_is_as_documented()
    training.save(2)
    training.the_folder_is_as_documented()
    training.teardown()
