"""Batches: the same whoever reads them, every epoch in another order, every test image once."""

import errno
import multiprocessing
import os
import signal
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from absl import flags

from cfmlc_jax.data import pipeline, spawn, workers
from cfmlc_jax.data.evaluation import evaluation_batches, why_unreadable
from cfmlc_jax.data.pipeline import train_batches
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.data.views.patches import ToViews
from cfmlc_jax.data.weighting import Weighting
from cfmlc_jax.data.workers import Reading, Standing, sub_batch
from cfmlc_jax.errors import InputError, RunError

flags.FLAGS.mark_as_parsed()  # Grain's workers read its flags


@pytest.fixture(scope="module")
def source():
    return Scenes("train", num_scenes=22)


AUGMENTED = ToViews(size=16, grid=2, augment=True)


def batches(source, reading=None, **changes):
    arguments = {"batch_size": 4, "epochs": 2, "seed": 3} | changes
    return list(train_batches(source, AUGMENTED, reading=reading or Reading(threads=2), **arguments))


def assert_equal(ours, theirs):
    assert len(ours) == len(theirs) > 0
    for a, b in zip(ours, theirs, strict=True):
        assert a.keys() == b.keys()
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


def test_shapes_and_whole_batches_only(source):
    read_batches = batches(source)
    assert len(read_batches) == 2 * (22 // 4)
    for batch in read_batches:
        assert (batch["views"].shape, batch["views"].dtype) == ((4, 5, 16, 16, 3), np.uint8)
        assert (batch["labels"].shape, batch["labels"].dtype) == ((4, 10), np.float32)


@pytest.mark.parametrize("reading", [Reading(threads=1), Reading(threads=2, workers=2)])
def test_the_same_for_any_threads_and_workers(source, reading):
    assert_equal(batches(source, reading), batches(source))


@pytest.mark.parametrize(
    ("share", "devices", "image_bytes", "images"),
    [
        (128, 1, 5 * 448**2 * 3, 4),  # by bytes
        (128, 8, 5 * 224**2 * 3, 16),  # by number
        (64, 8, 12288, 8),  # all images of a device
        (22, 1, 12288, 11),  # the largest divisor
        (17, 1, 12288, 1),
        (6, 4, 12288, 6),  # no equal shares, so that one device is meant
        (8, 1, 2**30, 1),  # a larger image than a sub-batch should be
    ],
)
def test_sub_batches_divide_the_images_of_a_device(share, devices, image_bytes, images):
    assert sub_batch(share, devices, image_bytes) == images


def test_workers_hand_over_large_arrays_in_parts(source, monkeypatch):
    """Each is whole rows of one device; small arrays are joined. The rows are those without workers."""
    monkeypatch.setattr(workers, "_LARGE", 2000)
    whole = batches(source, batch_size=8)
    parted = batches(source, Reading(threads=1, workers=1, devices=4), batch_size=8)
    for batch in parted:
        assert [len(part) for part in batch["views"]] == [2, 2, 2, 2]
        batch["views"] = np.concatenate(batch["views"])
    assert_equal(parted, whole)


def test_workers_leave_sigterm_to_the_process_that_reads_from_them(source):
    expected = batches(source, Reading(threads=1))
    reading = iter(
        train_batches(source, AUGMENTED, batch_size=4, epochs=2, seed=3, reading=Reading(workers=1))
    )
    first = next(reading)
    (worker,) = multiprocessing.active_children()
    worker.terminate()  # sends it SIGTERM
    worker.join(1)
    assert worker.is_alive()
    assert_equal([first, *reading], expected)


class Large(Scenes):
    """A worker's description of it does not fit into a pipe."""

    def __init__(self):
        super().__init__("train", num_scenes=22)
        self.content = bytes(10**6)


def test_a_worker_that_is_killed_while_it_starts_is_an_error(monkeypatch):
    """Not a wait without end. The process starts, and is dead when its description is written."""
    list(train_batches(Large(), AUGMENTED, batch_size=4, epochs=1, seed=3, reading=Reading(workers=1)))
    start = spawn.util.spawnv_passfds

    def start_and_kill(*arguments):
        process = start(*arguments)
        os.kill(process, signal.SIGKILL)
        return process

    monkeypatch.setattr(spawn.util, "spawnv_passfds", start_and_kill)
    found = []

    def read():
        try:
            list(
                train_batches(Large(), AUGMENTED, batch_size=4, epochs=1, seed=3, reading=Reading(workers=1))
            )
        except RunError as error:
            found.append(str(error))

    reading = threading.Thread(target=read, daemon=True)
    reading.start()
    reading.join(60)
    assert "died (SIGKILL; most likely the machine is out of memory)" in found[0]


def test_standing_workers_read_pass_after_pass(source, monkeypatch):
    """The same batches each time, by workers that are started once."""
    to_views, standing, started = ToViews(size=16), Standing(), []
    make = workers.batches

    def counted(*args):
        started.append(args)
        return make(*args)

    def read(reading):
        return list(evaluation_batches(source, to_views, batch_size=8, reading=reading))

    expected = read(Reading())
    monkeypatch.setattr(workers, "batches", counted)
    try:
        for _ in range(3):
            assert_equal(read(Reading(threads=1, workers=1, standing=standing)), expected)
    finally:
        standing.close()
    assert len(started) == 1


def test_standing_workers_are_of_one_split_and_of_whole_passes(source, monkeypatch):
    streams = []

    def endless(*args):
        def stream():
            number = 0
            try:
                while True:
                    yield number
                    number += 1
            finally:
                closed.append(stream)

        closed = []
        streams.append(closed)
        return stream()

    monkeypatch.setattr(workers, "batches", endless)
    standing, other = Standing(), Scenes("val", num_scenes=5)

    def read(source, batch_size=8):
        reading = Reading(workers=1, standing=standing)
        return iter(evaluation_batches(source, ToViews(size=16), batch_size=batch_size, reading=reading))

    assert (list(read(source)), list(read(source))) == ([0, 1, 2], [3, 4, 5])
    broken = read(source)
    assert next(broken) == 6
    broken.close()
    assert [len(closed) for closed in streams] == [1]
    assert list(read(source)) == [0, 1, 2]
    assert list(read(source, batch_size=11)) == [0, 1]
    assert list(read(other)) == [0]
    assert [len(closed) for closed in streams] == [1, 1, 1, 0]
    standing.close()
    standing.close()
    assert [len(closed) for closed in streams] == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("cores", "free", "images", "expected"),
    [
        (64, 10**11, 82_000, 32),
        (128, 10**11, 82_000, 32),
        (16, 10**11, 82_000, 8),
        (2, 10**11, 82_000, 0),
        (64, 64 * 2**20, 82_000, 0),  # a container's /dev/shm
        (64, 10**9, 82_000, 8),
        (64, 10**11, 1000, 0),
    ],
)
def test_the_automatic_number_of_workers(monkeypatch, cores, free, images, expected):
    monkeypatch.setattr(workers.os, "sched_getaffinity", lambda process: range(cores), raising=False)
    monkeypatch.setattr(workers.os.path, "isdir", lambda path: True)
    monkeypatch.setattr(workers.shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    assert workers.automatic_workers(images, 128, 1, 5 * 448**2 * 3) == expected


def test_an_automatic_number_reads_the_same(source, monkeypatch):
    monkeypatch.setattr(workers, "automatic_workers", lambda *args: 1)
    automatic = Reading(workers=workers.AUTOMATIC)
    assert evaluation_batches(source, AUGMENTED, batch_size=4, reading=automatic).workers == 1
    assert_equal(batches(source, automatic), batches(source))


def test_processes_share_every_batch(source):
    parts = [batches(source, Reading(process=i, processes=2, threads=2)) for i in range(2)]
    assert parts[0][0]["views"].shape == (2, 5, 16, 16, 3)
    joined = [
        {name: np.concatenate([share[name] for share in shares]) for name in shares[0]}
        for shares in zip(*parts, strict=True)
    ]
    assert_equal(joined, batches(source))


@pytest.mark.parametrize("reshuffle", [True, False])
@pytest.mark.parametrize("start", [1, 5, 7])
def test_resuming_gives_the_remaining_batches(source, start, reshuffle):
    ours = batches(source, start_step=start, reshuffle=reshuffle)
    assert_equal(ours, batches(source, reshuffle=reshuffle)[start:])


def test_without_reshuffling_epochs_differ_by_augmentation_alone(source):
    def epochs(to_views):
        read = train_batches(
            source, to_views, batch_size=4, epochs=3, seed=3, reading=Reading(threads=2), reshuffle=False
        )
        views = np.concatenate([batch["views"] for batch in read])
        return views.reshape(3, -1, *views.shape[1:])

    first, second, third = epochs(ToViews(size=16, grid=None))
    np.testing.assert_array_equal(first, second)
    np.testing.assert_array_equal(first, third)
    assert len({view.tobytes() for view in first}) == 20  # an order of the images, whole batches of it
    augmented = epochs(ToViews(size=16, grid=None, augment=True))
    assert all(not np.array_equal(augmented[0], other) for other in augmented[1:])


def test_seeds_and_epochs_have_other_orders_and_augmentations(source):
    plain = ToViews(size=16, grid=None)
    first, second = (
        list(train_batches(source, plain, batch_size=22, epochs=2, seed=seed, reading=Reading()))
        for seed in (0, 1)
    )
    epochs = [batch["views"] for batch in (*first, *second)]
    for i, one in enumerate(epochs):
        for other in epochs[i + 1 :]:
            assert not np.array_equal(one, other)
        assert {view.tobytes() for view in one} == {view.tobytes() for view in epochs[0]}


class Counted:
    """A transform that gives the position of a record instead of its pixels."""

    size, grid, num_views = 1, None, 1

    def __call__(self, record, generator=None):
        views = np.full((1, 1, 1, 3), int(record["id"].rpartition("-")[2]), np.uint8)
        return {"views": views, "labels": np.float32(record["labels"]), "id": record["id"]}


def drawn(source, weighting, **changes):
    """Positions of the images of every batch, [steps, b]."""
    arguments = {"batch_size": 5, "epochs": 40, "seed": 3, "reading": Reading(threads=1)} | changes
    read_batches = train_batches(source, Counted(), weighting=weighting, **arguments)
    return np.stack([batch["views"][:, 0, 0, 0, 0] for batch in read_batches])


def test_weights_are_how_often_images_are_drawn(source):
    weights = np.linspace(0, 4, 22)
    positions = drawn(source, Weighting(weights))
    assert positions.shape == (40 * 4, 5)  # as many steps as without weights
    counts = np.bincount(positions.ravel(), minlength=22)
    assert counts[0] == 0
    np.testing.assert_allclose(counts / positions.size, weights / weights.sum(), atol=0.015)
    # An epoch has each image its share of times, rounded, and one more or less at the parts' ends.
    for epoch in positions.reshape(40, 20):
        assert (np.bincount(epoch, minlength=22) <= np.ceil(22 * weights / weights.sum()) + 1).all()
    np.testing.assert_array_equal(drawn(source, Weighting(10 * weights)), positions)
    assert (drawn(source, Weighting(weights), seed=4) != positions).any()


def test_weights_from_an_epoch_on(source):
    weights = np.where(np.arange(22) < 2, 1.0, 0.0)
    positions = drawn(source, Weighting(weights, from_epoch=3), epochs=4).reshape(4, 20)
    np.testing.assert_array_equal(positions[:2], drawn(source, None, epochs=2).reshape(2, 20))
    assert (positions[2:] < 2).all()
    np.testing.assert_array_equal(
        drawn(source, Weighting(weights, from_epoch=9), epochs=2), drawn(source, None, epochs=2)
    )


def test_weighted_batches_resume_and_are_shared(source):
    weighting = Weighting(np.arange(22.0), from_epoch=2)
    whole = drawn(source, weighting, batch_size=4, epochs=3)
    np.testing.assert_array_equal(drawn(source, weighting, batch_size=4, epochs=3, start_step=7), whole[7:])
    parts = [
        drawn(source, weighting, batch_size=4, epochs=3, reading=Reading(threads=1, process=i, processes=2))
        for i in range(2)
    ]
    np.testing.assert_array_equal(np.concatenate(parts, axis=1), whole)


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("batch_size", [4, 22, 32])
def test_evaluation_sees_each_image_once_in_batches_of_one_shape(source, batch_size, processes):
    to_views = ToViews(size=16)
    runs = [
        list(
            evaluation_batches(
                source,
                to_views,
                batch_size=batch_size,
                reading=Reading(process=i, processes=processes, threads=2),
            )
        )
        for i in range(processes)
    ]
    assert len({len(run) for run in runs}) == 1
    positions = np.concatenate([batch["index"] for run in runs for batch in run])
    assert sorted(positions[positions >= 0]) == list(range(22))
    for run in runs:
        for batch in run:
            assert batch["views"].shape == (batch_size // processes, 1, 16, 16, 3)
            for index, views in zip(batch["index"], batch["views"], strict=True):
                expected = to_views(source[index])["views"] if index >= 0 else 0
                np.testing.assert_array_equal(views, expected)


class WithDamage:
    """A source of which some images are no images."""

    def __init__(self, source, damaged):
        self._source, self._damaged = source, frozenset(damaged)
        self.class_names, self.labels, self.ids = source.class_names, source.labels, source.ids

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        record = self._source[index]
        return record | {"image": b"no image", "where": f"{index}.jpg"} if index in self._damaged else record


def test_an_unreadable_image_stops_and_is_named(source):
    for reading in (Reading(threads=2), Reading(threads=1, workers=1)):
        with pytest.raises(InputError, match=r"^7.jpg: 8 bytes that are not an image"):
            batches(WithDamage(source, [7]), reading)
    with pytest.raises(InputError, match=r"^3.jpg"):
        list(evaluation_batches(WithDamage(source, [3]), ToViews(size=16), batch_size=4, reading=Reading()))


def test_the_next_image_replaces_one_that_is_skipped(source):
    # The last one's next is the first; 7's next is as unreadable.
    damaged = WithDamage(source, [7, 8, 21])
    plain = ToViews(size=16, grid=None)

    def read(source, **options):
        return list(
            train_batches(
                source, plain, batch_size=4, epochs=3, seed=3, reading=Reading(threads=2, **options)
            )
        )

    read_batches, whole = read(damaged, skip=True), read(source)
    replaced = np.concatenate([batch.pop("replaced") for batch in read_batches])
    assert set(replaced) == {-1, 7, 8, 21}
    views = {
        name: np.concatenate([batch["views"] for batch in its_batches])
        for name, its_batches in (("skipping", read_batches), ("whole", whole))
    }
    labels = np.concatenate([batch["labels"] for batch in read_batches])
    for row, position in enumerate(replaced):
        if position < 0:
            np.testing.assert_array_equal(views["skipping"][row], views["whole"][row])
        else:
            stand_in = {7: 9, 8: 9, 21: 0}[position]
            np.testing.assert_array_equal(views["skipping"][row], plain(source[stand_in])["views"])
            np.testing.assert_array_equal(labels[row], source.labels[stand_in])


def test_skipping_is_the_same_for_any_workers_and_processes(source):
    damaged = WithDamage(source, [0, 5, 6, 13])
    expected = batches(damaged, Reading(threads=2, skip=True))
    assert_equal(batches(damaged, Reading(threads=1, workers=1, skip=True)), expected)
    parts = [batches(damaged, Reading(process=i, processes=2, threads=1, skip=True)) for i in range(2)]
    joined = [
        {name: np.concatenate([share[name] for share in shares]) for name in shares[0]}
        for shares in zip(*parts, strict=True)
    ]
    assert_equal(joined, expected)


def test_evaluation_leaves_out_what_it_skips(source):
    damaged = WithDamage(source, [0, 21])
    for batch in evaluation_batches(damaged, ToViews(size=16), batch_size=4, reading=Reading(skip=True)):
        blank = batch["index"] < 0
        assert not batch["views"][blank].any()
        assert not {0, 21} & set(batch["index"].tolist())


def test_a_missing_disk_is_an_error_even_with_skip(source, monkeypatch):
    monkeypatch.setattr(pipeline, "MOST_IN_A_ROW", 5)
    with pytest.raises(InputError, match=r"^5 consecutive images cannot be read; the first: \d+.jpg"):
        batches(WithDamage(source, range(22)), Reading(skip=True))
    assert why_unreadable(WithDamage(source, [4]), AUGMENTED, 4).startswith("4.jpg: ")
    assert "4" in why_unreadable(source, AUGMENTED, 4)  # read at another try


class Failing:
    """In place of Grain's data: an iterator that gives one batch, and then fails."""

    def __init__(self, error):
        self._error, self.closed = error, False

    def __iter__(self):
        return self

    def __next__(self):
        if self.closed is None:
            raise self._error
        self.closed = None
        return {}

    def close(self):
        self.closed = True


# As Grain reports a worker's end.
ENDED = "Worker process was terminated unexpectedly with exit code {}. Search the logs above for the source of the crash."


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "is full .No space left on device.; .*--shm-size=8g"),
        (RuntimeError(ENDED.format(-signal.SIGBUS)), "is full .bus error.; .*data.workers=0"),
        (RuntimeError(ENDED.format(-signal.SIGKILL)), "died .SIGKILL; most likely the machine is out of memory"),
        (RuntimeError(ENDED.format(3)), "died .exit code 3.; .*data.workers"),
        (OSError(errno.EMFILE, "Too many open files"), "the 2 workers cannot pass on their images .Too many open files"),
    ],
)  # fmt: skip
def test_errors_that_end_workers_are_one_line(error, words):
    data = Failing(error)
    with pytest.raises(RunError, match=words):
        list(workers.Batches(data, workers=2))
    assert data.closed


def test_other_errors_keep_their_kind():
    for error in (RuntimeError("a defect"), OSError(errno.EIO, "no worker's")):
        with pytest.raises(type(error)):
            list(workers.Batches(Failing(error), workers=0))
