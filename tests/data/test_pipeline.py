"""Batches: the same whoever reads them, every epoch in another order, every test image once."""

import numpy as np
import pytest
from absl import flags

from cfmlc_jax.data.pipeline import Reading, evaluation_batches, train_batches
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.data.transforms import ToViews

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
    found = batches(source)
    assert len(found) == 2 * (22 // 4)
    for batch in found:
        assert (batch["views"].shape, batch["views"].dtype) == ((4, 5, 16, 16, 3), np.uint8)
        assert (batch["labels"].shape, batch["labels"].dtype) == ((4, 10), np.float32)


@pytest.mark.parametrize("reading", [Reading(threads=1), Reading(threads=2, workers=2)])
def test_the_same_for_any_threads_and_workers(source, reading):
    assert_equal(batches(source, reading), batches(source))


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
def test_going_on_gives_the_batches_that_remain(source, start, reshuffle):
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
