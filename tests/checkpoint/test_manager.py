"""Checkpoints: what is kept, what comes back, and what happens when one is damaged."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from cfmlc_jax.checkpoint import manager
from cfmlc_jax.checkpoint.manager import Checkpoints
from cfmlc_jax.errors import InputError, RunError

META = {"config": {"seed": 0}, "class_names": ["a"]}


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
    found = checkpoints.restore_latest(model=model, training=training, check=check, warn=warn)
    checkpoints.close()
    return found


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


def test_what_is_saved_comes_back(folder):
    model, training, meta = restore(folder)
    assert meta == META | {"step": 5}
    jax.tree.map(np.testing.assert_array_equal, (model, training), items(5))
    assert jax.tree.structure(training) == jax.tree.structure(items(5)[1])


def test_nothing_saved_is_nothing_restored(tmp_path):
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


def test_all_damaged_is_an_error(folder):
    for step in ("2", "4", "5"):
        DAMAGES["meta lost"](folder / step)
    with pytest.raises(RunError, match=r"none of the checkpoints \[5, 4, 2\] .* is readable"):
        restore(folder, lambda text: None)


def test_a_save_that_was_killed_leaves_no_trace(folder):
    (folder / "6.orbax-checkpoint-tmp").mkdir()
    assert restore(folder)[2]["step"] == 5
    assert not (folder / "6.orbax-checkpoint-tmp").exists()


def test_a_run_its_folder_and_a_step_are_found(folder, tmp_path):
    assert manager.find(folder.parent) == folder / "2"
    assert manager.find(folder) == folder / "2"
    assert manager.find(folder / "4") == folder / "4"
    moved = (folder / "4").rename(tmp_path / "my_model")
    assert manager.find(moved) == moved
    assert manager.read_meta(moved)["step"] == 4
    model = manager.read_model(moved, abstract(items(0)[0]))
    jax.tree.map(np.testing.assert_array_equal, model, items(4)[0])


def test_places_without_a_checkpoint(tmp_path):
    for place in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(InputError, match="is not a checkpoint, nor a run with checkpoints"):
            manager.find(place)


def test_a_checkpoint_of_another_model_is_refused(folder):
    other = {"variables": {"layer": {"kernel": jnp.zeros((4, 3))}}}
    with pytest.raises(InputError, match=r"cannot be read: .*\(4, 3\)"):
        manager.read_model(folder / "4", abstract(other))
    with pytest.raises(InputError, match="cannot be read"):
        manager.read_model(folder / "4", abstract({"variables": {"other": jnp.zeros((4, 2))}}))


def lone(folder):
    model = {"average": {"a": np.arange(16, dtype=np.float32).reshape(8, 2), "b": np.ones(3, np.float32)}}
    manager.write(folder / "lone", model=model, meta={"class_names": None, "num_classes": 7})
    return folder / "lone", model


def test_a_checkpoint_by_itself(tmp_path):
    path, model = lone(tmp_path)
    assert manager.find(path) == path
    assert manager.num_classes(manager.read_meta(path)) == 7
    assert manager.num_classes({"class_names": ["cat", "dog"]}) == 2
    shapes = manager.model_shapes(path)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), shapes) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), model
    )
    whole = manager.read_part(path, shapes)
    jax.tree.map(np.testing.assert_array_equal, whole, model)
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(whole))
    with pytest.raises(InputError, match="lone is there already; remove it"):
        lone(tmp_path)


def test_a_part_is_read_to_where_it_belongs(tmp_path):
    path, model = lone(tmp_path)
    split = jax.NamedSharding(jax.make_mesh((8,), ("data",)), jax.P("data"))
    part = manager.read_part(
        path, {"average": {"a": jax.ShapeDtypeStruct((8, 2), np.float32, sharding=split)}}
    )
    assert set(part["average"]) == {"a"}
    assert part["average"]["a"].sharding == split
    np.testing.assert_array_equal(part["average"]["a"], model["average"]["a"])


@pytest.mark.parametrize(("name", "shape"), [("c", (3,)), ("b", (4,))])
def test_a_part_that_is_not_there(tmp_path, name, shape):
    path, _ = lone(tmp_path)
    wanted = {"average": {name: jax.ShapeDtypeStruct(shape, np.float32)}}
    with pytest.raises(InputError, match=rf"lone has no average/{name} of shape \[{shape[0]}\]"):
        manager.read_part(path, wanted)


def test_a_model_without_its_index(tmp_path):
    path, _ = lone(tmp_path)
    (path / "model" / "_METADATA").unlink()
    with pytest.raises(InputError, match="lone cannot be read: its model has no index"):
        manager.model_shapes(path)
