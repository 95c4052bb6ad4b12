"""Checkpoints: what is kept, what comes back, and what happens when one is damaged."""

import errno
import os
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest

from cfmlc_jax import checkpoint, digests, files
from cfmlc_jax.checkpoint import Checkpoints
from cfmlc_jax.errors import InputError, RunError, WriteError

META = checkpoint.signed({"config": {"seed": 0}, "class_names": ["a"]})


def items(value):
    params = {"layer": {"kernel": jnp.full((4, 2), float(value))}}
    return {"variables": params}, {"step": jnp.int32(value), "opt_state": optax.adam(1.0).init(params)}


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def save(checkpoints, step, rank=None):
    model, training = items(step)
    checkpoints.save(step, model=model, training=training, meta=META | {"step": step})
    if rank is not None:
        checkpoints.rank(step, rank, {"seen": step})


def restore(folder, warn=pytest.fail, check=lambda path, meta: None):
    checkpoints = Checkpoints(folder)
    model, training = (abstract(tree) for tree in items(0))
    restored = checkpoints.restore_latest(model=model, training=training, check=check, warn=warn)
    checkpoints.close()
    return restored


@pytest.fixture
def folder(tmp_path):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step, rank in [(1, 0.5), (2, 0.9), (3, None), (4, 0.1), (5, None)]:
        save(checkpoints, step, rank)
    checkpoints.close()
    return tmp_path / "checkpoints"


def test_the_latest_two_and_the_best_are_kept(folder):
    assert sorted(path.name for path in folder.iterdir()) == ["2", "4", "5"]
    checkpoints = Checkpoints(folder)
    assert checkpoints.best_step() == 2
    checkpoints.close()


@pytest.mark.parametrize(
    ("ranks", "best", "kept"),
    [
        ({1: 0.5, 2: 0.5, 3: 0.1, 4: 0.2}, 2, {2, 3, 4}),  # of equal ones the latest
        ({1: 0.5, 2: float("nan"), 3: 0.1, 4: float("nan")}, 1, {1, 3, 4}),
        ({1: float("nan"), 2: 0.5, 3: 0.1, 4: 0.2}, 2, {2, 3, 4}),
        ({1: None, 2: None, 3: None}, 3, {2, 3}),
        ({1: 0.1, 2: 0.2, 3: 0.3}, 3, {2, 3}),
        ({10: 0.0, 9: -1.0}, 10, {9, 10}),
    ],
)
def test_the_best_by_rank(tmp_path, ranks, best, kept):
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step, rank in ranks.items():
        save(checkpoints, step, rank)
    checkpoints.close()
    assert checkpoints.best_step() == best
    assert {int(path.name) for path in (tmp_path / "checkpoints").iterdir()} == kept
    assert checkpoint.find(tmp_path).name == str(best)


def test_the_rank_and_the_progress_are_stored_after_the_save(folder):
    assert "rank" not in restore(folder)[2]
    checkpoints = Checkpoints(folder)
    checkpoints.rank(5, 1.5, {"step": 50, "seen": "all"})
    checkpoints.close()
    assert restore(folder)[2] == META | {"step": 50, "seen": "all", "rank": 1.5}
    assert checkpoint.find(folder) == folder / "5"
    # The former best is no longer wanted.
    assert sorted(path.name for path in folder.iterdir()) == ["4", "5"]
    assert checkpoint.read_meta(folder / "5") == META | {"step": 5}


def test_ranks_of_older_versions_and_damaged_ones(folder):
    for step, text in (("2", '{"rank": 0.3}'), ("4", '{"rank": 0.4}')):
        (folder / step / "rank.json").unlink()
        (folder / step / "metrics").mkdir()
        (folder / step / "metrics" / "metrics").write_text(text)
    assert checkpoint.find(folder) == folder / "4"
    for text in ("", "{", "[1]", '{"rank": "high"}', "\x00"):
        (folder / "4" / "rank.json").write_text(text)
        assert checkpoint.find(folder) == folder / "2"
    (folder / "5" / "rank.json").write_text('{"rank": ')
    assert "rank" not in restore(folder)[2]


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.EACCES])
def test_a_rank_that_the_machine_cannot_read_is_not_taken_for_none(folder, monkeypatch, number):
    """The next save would remove the best checkpoint, and an evaluation take another one."""
    read = Path.read_text

    def fail(path, *arguments, **options):
        if path == folder / "2" / "rank.json":
            raise OSError(number, os.strerror(number))
        return read(path, *arguments, **options)

    before = contents(folder)
    monkeypatch.setattr(Path, "read_text", fail)
    for use in (Checkpoints, checkpoint.find):
        with pytest.raises(
            RunError, match=rf"^checkpoint .*/2 cannot be read \({os.strerror(number)}\); fix that and run"
        ):
            use(folder)
    monkeypatch.undo()
    assert contents(folder) == before
    assert checkpoint.find(folder) == folder / "2"


def test_readers_leave_a_save_in_progress_alone(folder):
    saving = folder / "6.orbax-checkpoint-tmp" / "model.orbax-checkpoint-tmp"
    saving.mkdir(parents=True)
    (saving / "part").write_text("half")
    before = contents(folder.parent)
    assert checkpoint.find(folder.parent) == folder / "2"
    path = checkpoint.find(folder)
    assert checkpoint.read_meta(path)["step"] == 2
    checkpoint.read_model(path, abstract(items(0)[0]))
    checkpoint.read_part(path, checkpoint.model_shapes(path))
    assert contents(folder.parent) == before
    # One that is gone meanwhile is no damage.
    with pytest.raises(InputError, match=r"checkpoint .*/3 is gone; a running training"):
        checkpoint.read_meta(folder / "3")


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_saved_checkpoint_is_restored(folder):
    model, training, meta = restore(folder)
    assert meta == META | {"step": 5}
    jax.tree.map(np.testing.assert_array_equal, (model, training), items(5))
    assert jax.tree.structure(training) == jax.tree.structure(items(5)[1])


def test_without_a_checkpoint_nothing_is_restored(tmp_path):
    assert restore(tmp_path / "checkpoints") is None


DAMAGES = {
    "index lost": lambda step: (step / "model" / "manifest.ocdbt").unlink(),
    "index cut": lambda step: cut(step / "training" / "manifest.ocdbt"),
    "tree cut": lambda step: cut(step / "training" / "_METADATA"),
    "meta cut": lambda step: cut(step / "meta" / "metadata"),
    "meta lost": lambda step: (step / "meta" / "metadata").unlink(),
    "arrays overwritten": lambda step: [path.write_bytes(b"x") for path in step.glob("model/**/d/*")],
}


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


# Orbax ends a restore that fails while reads are under way; their callbacks find no event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_taken(folder, damage):
    DAMAGES[damage](folder / "5")
    warnings = []
    _, _, meta = restore(folder, warnings.append)
    assert meta["step"] == 4
    assert len(warnings) == 1
    assert warnings[0].startswith("checkpoint 5 is damaged")
    assert "\n" not in warnings[0]
    assert (folder.parent / "damaged" / "5").is_dir()
    # The step can be saved again.
    checkpoints = Checkpoints(folder)
    save(checkpoints, 5)
    checkpoints.close()
    assert restore(folder)[2]["step"] == 5
    # And set aside again: the first one stays.
    DAMAGES["meta lost"](folder / "5")
    assert restore(folder, warnings.append)[2]["step"] == 4
    assert sorted(path.name for path in (folder.parent / "damaged").iterdir()) == ["5", "5.1"]


def flip_a_bit(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_one_bit_of_an_array_that_changed_is_noticed(tmp_path):
    """TensorStore alone would read other numbers."""
    path, model = tmp_path / "one", {"w": jnp.arange(8000.0).reshape(4000, 2)}
    checkpoint.write(path, model=model, meta=META)
    file = max((path / "model").rglob("d/*"), key=os.path.getsize)
    flip_a_bit(file)
    for read in (checkpoint.read_model, checkpoint.read_part):
        with pytest.raises(InputError, match=f"{file.relative_to(path)} has changed since it was written"):
            read(path, abstract(model))
    assert checkpoint.read_meta(path) == META


@pytest.mark.parametrize("method", ["mkdir", "rename"])
def test_a_damaged_checkpoint_that_cannot_be_moved(folder, monkeypatch, method):
    def fail(path, *_, **__):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    DAMAGES["meta lost"](folder / "5")
    before = contents(folder)
    checkpoints = Checkpoints(folder)
    model, training = (abstract(tree) for tree in items(0))
    monkeypatch.setattr(Path, method, fail)
    with pytest.raises(
        WriteError, match=r"damaged/5 cannot be written \(Read-only file system\); fix that and run"
    ):
        checkpoints.restore_latest(
            model=model, training=training, check=lambda path, meta: None, warn=pytest.fail
        )
    monkeypatch.undo()
    checkpoints.close()
    assert contents(folder) == before


def test_a_file_that_is_missing_and_digests_that_are_damaged(folder):
    (folder / "4" / "digests.json").write_text("{")
    max((folder / "5" / "training").rglob("d/*"), key=os.path.getsize).unlink()
    warnings = []
    assert restore(folder, warnings.append)[2]["step"] == 2
    assert ["is missing" in warnings[0], "digests.json is damaged" in warnings[1]] == [True, True]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_checkpoint_without_digests_gets_them_when_it_is_restored(tmp_path):
    """The process that saved it was killed before it wrote them."""
    model, training = {"w": jnp.arange(8000.0).reshape(4000, 2)}, {"step": jnp.int32(1)}
    arguments = {"model": abstract(model), "training": abstract(training), "check": lambda path, meta: None}
    checkpoints, path = Checkpoints(tmp_path / "checkpoints"), tmp_path / "checkpoints" / "2"
    for step in (1, 2):
        checkpoints.save(step, model=model, training=training, meta=META | {"step": step})
    checkpoints.wait()
    (path / digests.FILE).unlink()
    checkpoint.read_model(path, abstract(model))
    assert not (path / digests.FILE).exists()  # readers change nothing
    assert checkpoints.restore_latest(**arguments, warn=pytest.fail)[2]["step"] == 2
    flip_a_bit(max((path / "model").rglob("d/*"), key=os.path.getsize))
    warnings = []
    assert checkpoints.restore_latest(**arguments, warn=warnings.append)[2]["step"] == 1
    assert "has changed since it was written" in warnings[0]
    checkpoints.close()


def test_a_checkpoint_without_digests_is_restored_from_a_disk_that_is_full(folder, monkeypatch):
    (folder / "5" / digests.FILE).unlink()
    before = contents(folder)

    def fail(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fail)
    assert restore(folder)[2]["step"] == 5
    assert contents(folder).keys() == before.keys()


def test_an_array_that_is_in_parts_is_damaged(tmp_path):
    """Large enough for a file of its own, which Orbax reads after it has opened everything."""
    mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("fsdp"))
    model = {"w": jax.device_put(jax.random.normal(jax.random.key(0), (4000, 2)), split)}
    training = {"step": jnp.int32(1)}
    checkpoints = Checkpoints(tmp_path / "checkpoints")
    for step in (1, 2):
        checkpoints.save(step, model=model, training=training, meta=META)
    checkpoints.wait()
    max((tmp_path / "checkpoints" / "2" / "model").rglob("d/*"), key=os.path.getsize).write_bytes(b"")
    (tmp_path / "checkpoints" / "2" / digests.FILE).unlink()  # as of an older version
    warnings = []
    restored, _, _ = checkpoints.restore_latest(
        model=abstract(model),
        training=abstract(training),
        check=lambda path, meta: None,
        warn=warnings.append,
    )
    checkpoints.close()
    (line,) = warnings
    assert line.startswith("checkpoint 2 is damaged (OUT_OF_RANGE: Error reading")
    np.testing.assert_array_equal(restored["w"], model["w"])


def test_only_damaged_checkpoints_are_an_error(folder):
    for step in ("2", "4", "5"):
        DAMAGES["meta lost"](folder / step)
    with pytest.raises(RunError, match=r"none of the checkpoints \[5, 4, 2\] .* is readable"):
        restore(folder, lambda text: None)


def test_checkpoints_that_were_set_aside_are_never_trained_over(folder):
    for step in ("2", "4", "5"):
        DAMAGES["meta lost"](folder / step)
    with pytest.raises(RunError):
        restore(folder, lambda text: None)
    for _ in range(2):
        with pytest.raises(RunError, match=r"no checkpoint left, and those in .*damaged \(2, 4, 5\)"):
            restore(folder)
    (folder.parent / "damaged").rename(folder.parent / "elsewhere")
    assert restore(folder) is None


@pytest.mark.parametrize("text", ["{}", "[]", "null", '"text"'])
def test_a_meta_that_is_another_document(folder, text):
    (folder / "5" / "meta" / "metadata").write_text(text)
    (folder / "5" / digests.FILE).unlink()
    warnings = []
    assert restore(folder, warnings.append)[2]["step"] == 4
    assert warnings[0].startswith("checkpoint 5 is damaged (its meta has no class names)")


OTHERS = {
    "another shape": lambda kernel: {"layer": {"kernel": jnp.zeros((4, 3))}},
    "one more": lambda kernel: {"layer": {"kernel": kernel, "bias": jnp.zeros(2)}},
    "another name": lambda kernel: {"other": {"kernel": kernel}},
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_checkpoint_of_another_model_is_not_damaged(folder, other):
    before = contents(folder)
    model = {"variables": OTHERS[other](jnp.zeros((4, 2)))}
    checkpoints = Checkpoints(folder)
    with pytest.raises(InputError, match=r"checkpoint .*/5 belongs to another model \(variables/") as error:
        checkpoints.restore_latest(
            model=abstract(model),
            training=abstract(items(0)[1]),
            check=lambda path, meta: None,
            warn=pytest.fail,
        )
    assert "\n" not in str(error.value)
    assert contents(folder) == before


def test_a_failed_check_before_reading_moves_no_checkpoint(folder):
    def check(path, meta):
        raise InputError(f"{path.name}: {meta['step']}")

    before = contents(folder)
    with pytest.raises(InputError, match="5: 5"):
        restore(folder, check=check)
    assert contents(folder) == before


TROUBLES = {
    "Permission denied": PermissionError(13, "Permission denied"),
    "Input/output error": OSError(5, "Input/output error"),
    "Too many open files": ValueError(
        "UNAVAILABLE: Failed to open: Too many open files [os_error_code='24']"
    ),
    "Stale file handle": OSError(116, "Stale file handle"),
    "Cannot allocate memory": ValueError("RESOURCE_EXHAUSTED: Failed to allocate 9 bytes"),
}


@pytest.mark.parametrize("trouble", TROUBLES)
def test_read_errors_of_the_machine_are_not_damage(folder, monkeypatch, trouble):
    def fail(*_, **__):
        raise TROUBLES[trouble]

    before = contents(folder)
    monkeypatch.setattr(ocp.Checkpointer, "restore", fail)
    with pytest.raises(RunError, match=rf"checkpoint .*/5 cannot be read \({trouble}\)"):
        restore(folder)
    monkeypatch.undo()
    assert contents(folder) == before
    assert restore(folder)[2]["step"] == 5


FULL = {
    "raised by Python": OSError(28, "No space left on device"),
    "raised by TensorStore": ValueError(
        "RESOURCE_EXHAUSTED: Error writing: No space left on device [os_error_code='28']"
    ),
    "a quota": OSError(122, "Disk quota exceeded"),
}


def save_and_wait(checkpoints, model, training, *, step):
    checkpoints.save(step, model=model, training=training, meta=META)
    checkpoints.wait()


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("full", FULL)
def test_a_full_disk_leaves_the_others(folder, monkeypatch, full, background):
    def fail(checkpointer, path, **_):
        path.with_name(f"{path.name}.orbax-checkpoint-tmp").mkdir()
        raise FULL[full]

    def fail_in_the_background(_):
        fail(None, folder / "6")

    before = contents(folder)
    checkpoints = Checkpoints(folder)
    method, failure = ("wait_until_finished", fail_in_the_background) if background else ("save", fail)
    monkeypatch.setattr(ocp.AsyncCheckpointer, "wait_until_finished", lambda _: None)
    monkeypatch.setattr(ocp.AsyncCheckpointer, "save", lambda *_, **__: None)
    monkeypatch.setattr(ocp.AsyncCheckpointer, method, failure)
    with pytest.raises(WriteError, match=r"checkpoints/6 cannot be written \(.*\); free space there"):
        save_and_wait(checkpoints, *items(6), step=6)
    monkeypatch.undo()
    assert contents(folder).keys() == before.keys()
    assert checkpoints.latest_step() == 5
    save(checkpoints, 6)
    assert checkpoints.latest_step() == 6
    checkpoints.close()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_save_on_a_full_disk(small_disk, capfd):
    checkpoints = Checkpoints(small_disk / "checkpoints")
    save(checkpoints, 1)
    model, training = items(2)
    model["variables"] |= {str(i): np.random.default_rng(i).random(4000) for i in range(60)}
    with pytest.raises(WriteError, match=r"checkpoints/2 cannot be written \(No space left on device\)"):
        save_and_wait(checkpoints, model, training, step=2)
    checkpoints.close()
    assert [path.name for path in (small_disk / "checkpoints").iterdir()] == ["1"]
    assert restore(small_disk / "checkpoints")[2]["step"] == 1
    assert "Traceback" not in capfd.readouterr().err


def test_a_save_that_is_not_in_time(folder, monkeypatch):
    def late():
        raise TimeoutError("ChainedFuture completed 3/5 futures but timed out after 86400.31 seconds.")

    checkpoints = Checkpoints(folder)
    monkeypatch.setattr(checkpoints._checkpointer, "wait_until_finished", late)
    reason = r"checkpoints/6 cannot be written \(not in time: the disk is slow, or the clock has jumped\); fix that"
    with pytest.raises(WriteError, match=reason):
        save_and_wait(checkpoints, *items(6), step=6)
    monkeypatch.undo()
    checkpoints.close()
    assert restore(folder)[2]["step"] in (5, 6)  # Orbax may have ended the save


def test_a_checkpoint_is_on_the_disk_before_it_has_digests(tmp_path, monkeypatch):
    synced, missing = set(), []
    fsync, write = os.fsync, digests.write

    def recorded(handle):
        fsync(handle)
        synced.add(os.fstat(handle).st_ino)

    def checked(folder):
        paths = [*folder.rglob("*"), folder, folder.parent]
        assert len(paths) > 10
        missing.append([path for path in paths if path.stat().st_ino not in synced])
        write(folder)

    checkpoints = Checkpoints(tmp_path / "checkpoints")
    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(digests, "write", checked)
    save_and_wait(checkpoints, *items(1), step=1)
    lone(tmp_path)
    assert missing == [[], []]
    checkpoints.close()


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_save_that_cannot_be_put_on_the_disk(folder, monkeypatch, number):
    def fail(_):
        raise OSError(number, os.strerror(number))

    before = contents(folder)
    checkpoints = Checkpoints(folder)
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(WriteError, match=rf"checkpoints/6 cannot be written \({os.strerror(number)}\)"):
        save_and_wait(checkpoints, *items(6), step=6)
    with pytest.raises(InputError, match=rf"lone cannot be written \({os.strerror(number)}\)"):
        lone(folder)
    monkeypatch.undo()
    checkpoints.close()
    assert contents(folder) == before
    assert restore(folder)[2]["step"] == 5


def test_a_save_that_was_killed_leaves_no_trace(folder):
    (folder / "6.orbax-checkpoint-tmp").mkdir()
    assert restore(folder)[2]["step"] == 5
    assert not (folder / "6.orbax-checkpoint-tmp").exists()
    # Nor does a removal.
    (folder / "4").rename(folder / "4.orbax-checkpoint-tmp-old")
    assert restore(folder)[2]["step"] == 5
    assert sorted(path.name for path in folder.iterdir()) == ["2", "5"]
    # Nor does a rank; the files of a user stay.
    files.temporary(folder / "5" / "rank.json").touch()
    (folder / "5" / ".notes.tmp").touch()
    assert restore(folder)[2]["step"] == 5
    assert {path.name for path in (folder / "5").glob(".*")} == {".notes.tmp"}


def test_an_old_checkpoint_that_cannot_be_removed(folder, monkeypatch):
    def fail(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    checkpoints = Checkpoints(folder)
    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(WriteError, match=r"checkpoints/2 cannot be written \(Read-only file system\)"):
        checkpoints.rank(5, 1.0, {})
    monkeypatch.undo()
    checkpoints.close()
    assert checkpoint.find(folder) == folder / "5"


def test_find_accepts_a_run_its_checkpoints_folder_and_a_step(folder, tmp_path):
    assert checkpoint.find(folder.parent) == folder / "2"
    assert checkpoint.find(folder) == folder / "2"
    assert checkpoint.find(folder / "4") == folder / "4"
    moved = (folder / "4").rename(tmp_path / "my_model")
    assert checkpoint.find(moved) == moved
    assert checkpoint.read_meta(moved)["step"] == 4
    model = checkpoint.read_model(moved, abstract(items(0)[0]))
    jax.tree.map(np.testing.assert_array_equal, model, items(4)[0])


def test_places_without_a_checkpoint(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="is not a checkpoint, nor a run with checkpoints"):
            checkpoint.find(place)


def test_a_checkpoint_of_another_model_is_refused(folder):
    other = {"variables": {"layer": {"kernel": jnp.zeros((4, 3))}}}
    with pytest.raises(
        InputError, match=r"another model \(variables/layer/kernel \[4, 2\] instead of \[4, 3\]"
    ):
        checkpoint.read_model(folder / "4", abstract(other))
    with pytest.raises(InputError, match=r"variables/other missing instead of \[4, 2\]"):
        checkpoint.read_model(folder / "4", abstract({"variables": {"other": jnp.zeros((4, 2))}}))


def lone(folder):
    model = {"average": {"a": np.arange(16, dtype=np.float32).reshape(8, 2), "b": np.ones(3, np.float32)}}
    checkpoint.write(folder / "lone", model=model, meta={"class_names": None, "num_classes": 7})
    return folder / "lone", model


def test_a_checkpoint_by_itself(tmp_path):
    path, model = lone(tmp_path)
    assert checkpoint.find(path) == path
    assert checkpoint.num_classes(checkpoint.read_meta(path)) == 7
    assert checkpoint.num_classes({"class_names": ["cat", "dog"]}) == 2
    shapes = checkpoint.model_shapes(path)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), model
    )
    whole = checkpoint.read_part(path, shapes)
    jax.tree.map(np.testing.assert_array_equal, whole, model)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(whole))
    with pytest.raises(InputError, match="lone exists already; remove it"):
        lone(tmp_path)


def test_a_checkpoint_by_itself_on_a_full_disk(tmp_path, monkeypatch):
    def fail(checkpointer, path, **_):
        path.with_name(f"{path.name}.orbax-checkpoint-tmp").mkdir()
        raise FULL["raised by TensorStore"]

    monkeypatch.setattr(ocp.Checkpointer, "save", fail)
    (tmp_path / "other.orbax-checkpoint-tmp").mkdir()
    with pytest.raises(
        InputError, match=r"lone cannot be written \(No space left on device\); choose another"
    ):
        lone(tmp_path)
    # What somebody else is saving beside it is not touched.
    assert [path.name for path in tmp_path.iterdir()] == ["other.orbax-checkpoint-tmp"]


def test_a_part_is_read_with_its_sharding(tmp_path):
    path, model = lone(tmp_path)
    split = jax.NamedSharding(jax.make_mesh((8,), ("data",)), jax.P("data"))
    part = checkpoint.read_part(
        path, {"average": {"a": jax.ShapeDtypeStruct((8, 2), np.float32, sharding=split)}}
    )
    assert set(part["average"]) == {"a"}
    assert part["average"]["a"].sharding == split
    np.testing.assert_array_equal(part["average"]["a"], model["average"]["a"])


@pytest.mark.parametrize(("name", "shape"), [("c", (3,)), ("b", (4,))])
def test_a_missing_part_is_an_error(tmp_path, name, shape):
    path, _ = lone(tmp_path)
    wanted = {"average": {name: jax.ShapeDtypeStruct(shape, np.float32)}}
    with pytest.raises(InputError, match=rf"lone has no average/{name} of shape \[{shape[0]}\]"):
        checkpoint.read_part(path, wanted)


def test_a_model_without_its_index(tmp_path):
    path, _ = lone(tmp_path)
    (path / "model" / "_METADATA").unlink()
    with pytest.raises(InputError, match="lone cannot be read: its model has no index"):
        checkpoint.model_shapes(path)
