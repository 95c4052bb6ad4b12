"""The engine on systems of a few lines: it stops, saves, resumes, logs and ranks, whatever system it trains."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import toys

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax.engine import hooks, peaks, writers
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.instruments import Instruments
from cfmlc_jax.engine.reporting import Reporting
from cfmlc_jax.engine.state import from_items, plan, to_items
from cfmlc_jax.engine.step import TrainStep
from cfmlc_jax.engine.system import Update
from cfmlc_jax.errors import InputError, RunError


@pytest.fixture(autouse=True, scope="module")
def small_arrays_are_split():
    """Over "fsdp", as large ones are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(meshes, "LEAST_SPLIT", 2)
        yield


STEPS = toys.EPOCHS * toys.PER_EPOCH


def stored_arrays(workdir, step):
    """The two items of a checkpoint."""
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(
            workdir / "checkpoints" / str(step),
            args=ocp.args.Composite(model=ocp.args.StandardRestore(), training=ocp.args.StandardRestore()),
        )
    return restored.model, restored.training


def stored(workdir, step=STEPS):
    """All arrays of a checkpoint, and all logged metrics except times."""
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))} for line in lines]
    return stored_arrays(workdir, step), metrics


def assert_same(one, other):
    jax.tree.map(np.testing.assert_array_equal, one, other)


@pytest.mark.parametrize("devices", [1, 8])
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path, devices):
    program = [sys.executable, toys.__file__, str(tmp_path / "killed"), str(devices), "7", "5"]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    killed = subprocess.run(program, env=environment, check=False, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    printed = []
    toys.fitted(toys.Line(), tmp_path / "killed", devices, print_line=printed.append)
    assert printed == ["resuming at step 5 of 12"]
    toys.fitted(toys.Line(), tmp_path / "whole", devices)
    (arrays, metrics), (expected, expected_metrics) = stored(tmp_path / "killed"), stored(tmp_path / "whole")
    assert_same(arrays, expected)
    assert metrics == expected_metrics
    assert int(arrays[1]["updates"]) == STEPS


def test_a_resumed_run_says_that_its_history_is_lost(tmp_path):
    run = toys.run(toys.Line(), tmp_path / "run", asked=6)
    run.resume()
    with pytest.raises(hooks.Preempted):
        run.fit()
    run.close()
    (tmp_path / "run" / "metrics.jsonl").unlink()
    printed = []
    with Reporting(print_line=printed.append) as reporting:
        toys.fitted(toys.Line(), tmp_path / "run", instruments=Instruments(reporting))
    (line,) = printed
    assert line.startswith(f"warning: {tmp_path / 'run' / 'metrics.jsonl'}: 0 of 2 lines are left")
    toys.fitted(toys.Line(), tmp_path / "whole")
    (arrays, metrics), (expected, expected_metrics) = stored(tmp_path / "run"), stored(tmp_path / "whole")
    assert_same(arrays, expected)
    assert metrics == expected_metrics[2:]  # step 3 and the first validation are gone


def test_a_checkpoint_in_the_folder_of_another_step_is_refused(tmp_path):
    toys.fitted(toys.Line(), tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "12").rename(tmp_path / "run" / "checkpoints" / "13")
    with pytest.raises(
        InputError, match=r"checkpoints/13 is of step 12; put back the one of step 13, or remove it$"
    ):
        toys.fitted(toys.Line(), tmp_path / "run")


def test_two_optimisers_are_stepped_in_turn_and_survive(tmp_path):
    run = toys.run(toys.Duel(), tmp_path / "ended", asked=6)
    run.resume()
    with pytest.raises(hooks.Preempted, match="asked to end; saved step 6 of 12"):
        run.fit()
    run.close()
    assert run.checkpoints.latest_step() == 6
    toys.fitted(toys.Duel(), tmp_path / "ended")
    toys.fitted(toys.Duel(), tmp_path / "whole")
    arrays, metrics = stored(tmp_path / "ended")
    assert_same(arrays, stored(tmp_path / "whole")[0])
    # Computed by hand: the follower's gradient uses the leader's new value.
    leader, follower, velocity, costs = 0.0, 1.0, 0.0, []
    for step in range(STEPS):
        leader -= 0.2 * (leader - float(toys.batch(step)["x"].mean()))
        costs.append((follower - leader) ** 2)
        velocity = 0.5 * velocity + 2 * (follower - leader)
        follower -= 0.1 * velocity
    np.testing.assert_allclose(arrays[0]["leader"], leader, rtol=1e-5)
    np.testing.assert_allclose(arrays[1]["follower"], follower, rtol=1e-5)
    logged = {line["step"]: line["train/cost"] for line in metrics if "train/cost" in line}
    np.testing.assert_allclose(logged[9], np.mean(costs[6:9]), rtol=1e-5)


def test_several_devices_equal_one_device(tmp_path):
    toys.fitted(toys.Line(), tmp_path / "one", 1)
    toys.fitted(toys.Line(), tmp_path / "eight", 8)
    (one, _), (eight, _) = stored(tmp_path / "one"), stored(tmp_path / "eight")
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), eight, one)


class Wide:
    """A matrix, to test which devices hold which part. Its first value is a random number of the step."""

    values, selection = ("draw", "loss"), "none"

    def init(self, key):
        return {"matrix": jnp.ones((8, 40))}

    def update(self, learned, batch, key, step):
        loss, slope = jax.value_and_grad(lambda m: jnp.sum((batch["x"] @ m) ** 2))(learned["matrix"])
        values = {"draw": jax.random.uniform(key), "loss": loss}
        return Update({"matrix": learned["matrix"] - 1e-3 * slope}, values)

    def split(self, learned):
        return learned, {}


def wide_step(devices, fsdp, system=None, log_every=1):
    system, mesh = system or Wide(), toys.mesh_of(devices, fsdp)
    first, abstract = plan(system, seed=3, mesh=mesh)
    return TrainStep(system, abstract, seed=3, log_every=log_every, mesh=mesh), first(), mesh


@pytest.mark.parametrize("fsdp", [1, 2, 4])
def test_every_device_has_images_of_its_own(fsdp):
    """Also devices that together hold one copy of the parameters."""
    step, state, mesh = wide_step(8, fsdp)
    batch = meshes.to_devices({"x": np.arange(16 * 8, dtype=np.float32).reshape(16, 8)}, mesh)
    first_images = {shard.data[0, 0].item() for shard in batch["x"].addressable_shards}
    assert first_images == {16.0 * i for i in range(8)}
    # The compiled step refuses batches with another sharding.
    replicated = jax.device_put(batch, meshes.replicated(mesh))
    with pytest.raises(ValueError, match="sharding"):
        step(state, replicated)


def test_the_state_is_donated():
    step, state, mesh = wide_step(8, 2)
    batch = meshes.to_devices({"x": np.ones((16, 8), np.float32)}, mesh)
    after, _ = step(state, batch)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves((after, batch)))


def test_parameters_are_created_sharded():
    _, state, _ = wide_step(8, 4)
    assert {shard.data.shape for shard in state.learned["matrix"].addressable_shards} == {(8, 10)}


def test_every_step_has_its_own_key():
    step, state, mesh = wide_step(1, 1)
    batch = meshes.to_devices({"x": np.ones((16, 8), np.float32)}, mesh)
    draws = []
    for i in range(3):
        state, _ = step(state, batch)
        draws.append(float(state.tally["draw"]))
        expected = jax.random.uniform(jax.random.fold_in(jax.random.key(3), i))
        np.testing.assert_allclose(draws[-1], expected, rtol=1e-6)
    assert len(set(draws)) == 3


def test_initial_values_are_those_of_the_seed():
    _, state, _ = wide_step(1, 1, toys.Line())
    assert_same(state.learned, toys.Line().init(jax.random.key(3)))


def test_items_and_back():
    _, state, _ = wide_step(1, 1, toys.Line())
    model, training = to_items(state, toys.Line())
    assert set(model) == {"line"}
    assert set(training) == {"step", "tally", "updates"}
    assert_same(from_items(model, training), state)


def test_values_are_means_since_the_last_log(tmp_path):
    toys.fitted(toys.Line(), tmp_path / "run")
    _, metrics = stored(tmp_path / "run")
    # A log after every three steps, a validation after every four.
    assert [line["step"] for line in metrics] == [3, 4, 6, 8, 9, 12, 12]
    assert [line.get("epoch") for line in metrics] == [None, 1, None, 2, None, None, 3]
    assert [line["train/updates"] for line in metrics if "epoch" not in line] == [3, 6, 9, 12]


def test_at_least_one_log_an_epoch(tmp_path):
    toys.fitted(toys.Line(), tmp_path / "run", log_every=50)
    _, metrics = stored(tmp_path / "run")
    assert [line["step"] for line in metrics if "epoch" not in line] == [4, 8, 12]


class Scripted(toys.Line):
    """A system whose validation returns fixed metrics, one dict for each epoch."""

    def __init__(self, *epochs):
        self._epochs, self.validated = epochs, []

    def validate(self, learned, poll):
        epoch = round(float(learned["updates"])) // toys.PER_EPOCH
        self.validated.append(epoch)
        return {name: {"fit": value} for name, value in self._epochs[epoch - 1].items()}


def sets(weights, average):
    return {"weights": weights, "average": average}


def test_the_best_checkpoint_is_by_the_weights_that_predict(tmp_path):
    run = toys.fitted(Scripted(sets(1.0, 5.0), sets(9.0, 3.0), sets(2.0, 2.0)), tmp_path / "run")
    assert run.checkpoints.best_step() == 4
    assert run.checkpoints.latest_step() == STEPS
    assert checkpoints.find(tmp_path / "run").name == "4"


@pytest.mark.parametrize(("patience", "last"), [(1, 8), (2, 12), (None, 12)])
def test_a_run_that_no_longer_improves_stops(tmp_path, patience, last):
    system = Scripted(sets(5.0, 5.0), sets(4.0, 4.0), sets(4.5, 4.5))
    assert toys.fitted(system, tmp_path / "run", patience=patience).checkpoints.latest_step() == last
    # The run has finished: the same command again trains nothing.
    again = Scripted(sets(9.0, 9.0), sets(9.0, 9.0), sets(9.0, 9.0))
    toys.fitted(again, tmp_path / "run", patience=patience)
    assert again.validated == []


def test_a_resumed_run_remembers_its_best(tmp_path):
    epochs = sets(5.0, 5.0), sets(4.0, 4.0), sets(4.5, 4.5)
    # Killed in the second epoch. Neither the second nor the third epoch is better than the first.
    stopped = toys.run(Scripted(*epochs), tmp_path / "run", asked=6, patience=1)
    stopped.resume()
    with pytest.raises(hooks.Preempted):
        stopped.fit()
    stopped.close()
    system = Scripted(*epochs)
    run = toys.fitted(system, tmp_path / "run", patience=1)
    assert system.validated == [2]
    assert run.checkpoints.latest_step() == 8
    assert run.checkpoints.best_step() == 4


def test_an_interrupted_validation_is_done_first_when_resuming(tmp_path):
    class Interrupted(Scripted):
        def validate(self, learned, poll):
            poll()
            return super().validate(learned, poll)

    epochs = sets(1.0, 1.0), sets(2.0, 2.0), sets(3.0, 3.0)
    # The first four calls of `requested` follow steps; the fifth is in the validation.
    run = toys.run(Interrupted(*epochs), tmp_path / "run", asked=4)
    run.resume()
    with pytest.raises(hooks.Preempted, match="saved step 4 of 12, its validation comes next"):
        run.fit()
    run.close()
    system = Scripted(*epochs)
    toys.fitted(system, tmp_path / "run")
    assert system.validated == [1, 2, 3]
    _, metrics = stored(tmp_path / "run")
    assert [line["val/average/fit"] for line in metrics if "epoch" in line] == [1.0, 2.0, 3.0]


def test_a_validation_that_was_logged_but_not_ranked_is_logged_once(tmp_path, monkeypatch):
    def fail(*_):
        raise RunError("the disk is full")

    run = toys.run(toys.Line(), tmp_path / "run")
    monkeypatch.setattr(run.checkpoints, "rank", fail)
    run.resume()
    with pytest.raises(RunError, match="the disk is full"):
        run.fit()
    run.close()
    toys.fitted(toys.Line(), tmp_path / "run")
    _, metrics = stored(tmp_path / "run")
    assert [line["epoch"] for line in metrics if "epoch" in line] == [1, 2, 3]


def test_a_validation_that_was_done_is_not_repeated(tmp_path):
    epochs = sets(1.0, 1.0), sets(2.0, 2.0), sets(3.0, 3.0)
    # Asked to end after step 4, when the first epoch is validated too.
    run = toys.run(Scripted(*epochs), tmp_path / "run", asked=4)
    run.resume()
    with pytest.raises(hooks.Preempted, match=r"saved step 4 of 12$"):
        run.fit()
    run.close()
    system = Scripted(*epochs)
    toys.fitted(system, tmp_path / "run")
    assert system.validated == [2, 3]
    _, metrics = stored(tmp_path / "run")
    assert [line["val/average/fit"] for line in metrics if "epoch" in line] == [1.0, 2.0, 3.0]


class Overflowing(toys.Line):
    """A line whose offset overflows in one step. It watches its parameters, or leaves that to the engine."""

    def __init__(self, step, *, watching=True):
        self._step, self._watching = step, watching

    def update(self, learned, batch, key, step):
        update = super().update(learned, batch, key, step)
        line = jnp.where(step == self._step - 1, jnp.inf, update.learned["line"])
        update = update._replace(learned=update.learned | {"line": line})
        if not self._watching:
            return update
        watched = [("line", {"slope": line[0], "offset": line[1]}), ("loss", update.values["loss"])]
        return update._replace(watched=watched)


@pytest.mark.parametrize(
    ("system", "asked", "words"),
    [
        (Overflowing(8), 0, "step 8: line/offset is not finite"),
        # Only the next step's loss shows it.
        (Overflowing(6, watching=False), 0, "step 7: loss is not finite"),
        # The request to end would save the state.
        (Overflowing(6), 7, "step 6: line/offset is not finite"),
    ],
    ids=["watched", "values", "asked to end"],
)
def test_a_non_finite_array_is_named_and_the_last_checkpoint_stays(tmp_path, system, asked, words):
    run = toys.run(system, tmp_path / "run", asked=asked)
    run.resume()
    with pytest.raises(RunError, match=f"{words}; what was saved is intact"):
        run.fit()
    run.close()
    assert run.last_saved() == "checkpoint 5 is intact"


def interrupted(workdir, **options):
    """A run that is asked to end after step 6."""
    made = toys.run(toys.Line(), workdir, asked=7, **options)
    made.resume()
    with pytest.raises(hooks.Preempted):
        made.fit()
    made.close()


def test_only_a_new_run_prepares_its_start_and_writes_its_settings(tmp_path, monkeypatch):
    starts, settings = [], []
    monkeypatch.setattr(
        writers.TensorBoardWriter, "write_hparams", lambda self, hparams: settings.append(hparams)
    )

    def start(state):
        starts.append(int(state.step))
        return state.replace(learned=state.learned | {"updates": state.learned["updates"] + 100})

    def options():
        reporting = Reporting(("tensorboard",), hparams={"seed": 3})
        return {"start": start, "instruments": Instruments(reporting)}

    interrupted(tmp_path / "run", **options())
    toys.fitted(toys.Line(), tmp_path / "run", **options())
    assert starts == [0]
    assert settings == [{"seed": 3}]
    assert int(stored(tmp_path / "run")[0][1]["updates"]) == 100 + STEPS


def test_the_rate_of_a_resumed_run_is_of_its_own_steps(tmp_path):
    interrupted(tmp_path / "run")
    toys.fitted(toys.Line(), tmp_path / "run", before=lambda step: time.sleep(0.1))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    rates = {line["step"]: line["time/steps_per_second"] for line in lines if "epoch" not in line}
    assert rates[9] < 10


def test_a_checkpoint_of_other_data_is_refused_and_stays(tmp_path):
    interrupted(tmp_path / "run")
    asked = []

    def require_same(path, meta):
        asked.append((path.name, meta["class_names"]))
        raise InputError("other data")

    made = toys.run(toys.Line(), tmp_path / "run", require_same=require_same)
    with pytest.raises(InputError, match="other data"):
        made.resume()
    made.close()
    assert asked == [("6", ["y"])]
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == {"4", "5", "6"}


def test_a_damaged_checkpoint_is_set_aside_and_the_run_ends_the_same(tmp_path):
    interrupted(tmp_path / "run")
    (tmp_path / "run" / "checkpoints" / "6" / "training" / "manifest.ocdbt").write_bytes(b"broken")
    lines = []
    toys.fitted(toys.Line(), tmp_path / "run", print_line=lines.append)
    toys.fitted(toys.Line(), tmp_path / "whole")
    assert "checkpoint 6 is damaged" in lines[0]
    assert lines[1:] == ["resuming at step 5 of 12"]
    (arrays, metrics), (expected, expected_metrics) = stored(tmp_path / "run"), stored(tmp_path / "whole")
    assert_same(arrays, expected)
    assert metrics == expected_metrics


def test_notes_are_shown_after_every_epoch(tmp_path, capsys):
    toys.fitted(toys.Line(), tmp_path / "run", notes=lambda: ["two images cannot be read"])
    lines = capsys.readouterr().err.splitlines()
    shown = [i for i, line in enumerate(lines) if line == "two images cannot be read"]
    assert [lines[i + 1].partition(":")[0] for i in shown] == ["epoch 1", "epoch 2", "epoch 3"]


def validated_every(number, workdir, **options):
    """A run of three epochs of which not all are validated, and its system."""
    system = Scripted(sets(5.0, 5.0), sets(4.0, 4.0), sets(4.5, 4.5))
    return toys.run(system, workdir, validate_every=number, **options), system


@pytest.mark.parametrize(("number", "epochs"), [(1, [1, 2, 3]), (2, [2, 3]), (3, [3]), (9, [3])])
def test_only_some_epochs_are_validated_but_always_the_last(tmp_path, number, epochs):
    run, system = validated_every(number, tmp_path / "run")
    run.resume()
    run.fit()
    run.close()
    assert system.validated == epochs
    _, metrics = stored(tmp_path / "run")
    assert [line["epoch"] for line in metrics if "epoch" in line] == epochs
    # The best is one of those that were validated.
    assert run.checkpoints.best_step() == (4 if 1 in epochs else STEPS)
    assert run.checkpoints.latest_step() == STEPS


@pytest.mark.parametrize("asked", [4, 6])
def test_a_run_resumed_after_an_epoch_without_validation_does_not_validate_it(tmp_path, asked):
    """It ends the same, with the same log, whether it ended with that epoch or within the next."""
    run, system = validated_every(2, tmp_path / "run", asked=asked)
    run.resume()
    with pytest.raises(hooks.Preempted, match=rf"saved step {asked} of 12$"):
        run.fit()
    run.close()
    assert system.validated == []
    resumed, system = validated_every(2, tmp_path / "run")
    whole, expected = validated_every(2, tmp_path / "whole")
    for each in (resumed, whole):
        each.resume()
        each.fit()
        each.close()
    assert system.validated == expected.validated == [2, 3]
    (arrays, metrics), (all_arrays, all_metrics) = stored(tmp_path / "run"), stored(tmp_path / "whole")
    assert_same(arrays, all_arrays)
    assert metrics == all_metrics


def test_early_stopping_counts_epochs_and_not_validations(tmp_path):
    system = Scripted(sets(0.0, 0.0), sets(5.0, 5.0), sets(4.0, 4.0))
    run = toys.fitted(system, tmp_path / "run", validate_every=2, patience=1)
    assert system.validated == [2, 3]
    assert run.finished


def test_a_batch_is_sent_and_its_step_started_before_the_last_result_is_awaited(tmp_path, monkeypatch):
    """Also when every step is logged: the log is that of the step before."""
    events, to_devices = [], meshes.to_devices
    check, write = hooks.NonFiniteWatch._check, writers.JsonlWriter.write_scalars

    def sent(batch, mesh):
        events.append("sent")
        return to_devices(batch, mesh)

    def checked(watch, step, first_bad):
        events.append(f"checked {step}")
        check(watch, step, first_bad)

    def written(writer, step, scalars):
        events.append(f"wrote {step}")
        write(writer, step, scalars)

    monkeypatch.setattr(meshes, "to_devices", sent)
    monkeypatch.setattr(hooks.NonFiniteWatch, "_check", checked)
    monkeypatch.setattr(writers.JsonlWriter, "write_scalars", written)
    toys.fitted(toys.Line(), tmp_path / "run", log_every=1)
    # An epoch of four steps: its last results are awaited for the checkpoint and the validation.
    assert events[:10] == [
        "sent", "sent", "wrote 1", "checked 1", "sent", "wrote 2", "checked 2", "sent", "wrote 3", "checked 3",
    ]  # fmt: skip
    assert events[10:13] == ["wrote 4", "checked 4", "wrote 4"]


def test_waits_for_the_input_are_logged_per_step(tmp_path):
    toys.fitted(toys.Line(), tmp_path / "run", before=lambda step: time.sleep(0.05))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logs = [line for line in lines if "epoch" not in line]
    assert all(0.05 <= line["time/input_wait"] < 1 for line in logs)
    assert all(0 <= line["time/device_wait"] < 1 for line in logs)
    # CPUs have no published peak, and do not count their memory.
    assert not any("time/mfu" in line or "memory/device_peak_gib" in line for line in logs)
    assert all(0.01 < line["memory/host_peak_gib"] < 1000 for line in logs)


class LineWithProduct(toys.Line):
    """A line whose step has a product of two vectors of 16 entries."""

    def update(self, learned, batch, key, step):
        made = super().update(learned, batch, key, step)
        return made._replace(values=made.values | {"loss": made.values["loss"] + batch["x"] @ batch["x"]})


def test_the_share_of_the_peak_rate_is_logged_where_it_is_known(tmp_path, monkeypatch):
    monkeypatch.setitem(peaks.BFLOAT16, jax.devices()[0].device_kind, 1e-6)
    toys.fitted(LineWithProduct(), tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    logs = [line for line in lines if "epoch" not in line]
    # All devices of a run together, and the same operations in every step.
    operations = [line["time/mfu"] * 1e6 / line["time/steps_per_second"] for line in logs]
    np.testing.assert_allclose(operations, 2 * 16)


@pytest.mark.parametrize(("devices", "fsdp", "least"), [(1, 1, 2), (8, 1, 2), (8, 4, 2), (8, 4, 2**16)])
def test_a_checkpoint_is_restored_on_other_devices(tmp_path, monkeypatch, devices, fsdp, least):
    """From arrays that are split over four devices, also by the rule that small ones are not."""
    step, state, mesh = wide_step(8, 4)
    state, _ = step(state, meshes.to_devices({"x": np.ones((16, 8), np.float32)}, mesh))
    saved = checkpoints.Checkpoints(tmp_path / "checkpoints")
    model, training = to_items(state, Wide())
    saved.save(1, model=model, training=training, meta={"class_names": []})
    monkeypatch.setattr(meshes, "LEAST_SPLIT", least)
    _, abstract = plan(Wide(), seed=3, mesh=toys.mesh_of(devices, fsdp))
    model, training = to_items(abstract, Wide())
    options = {"check": lambda path, meta: None, "warn": pytest.fail}
    model, training, _ = saved.restore_latest(model=model, training=training, **options)
    saved.close()
    restored = from_items(model, training)
    assert_same(restored, state)
    split = fsdp > 1 and least == 2
    shape = (8, 10) if split else (8, 40)
    shards = restored.learned["matrix"].addressable_shards
    assert {shard.data.shape for shard in shards} == {shape}
    assert len(shards) == devices


def test_a_save_returns_before_the_files_are_complete(tmp_path, monkeypatch):
    """And the state may change at once: what is saved is the state at the call."""
    go, finish = threading.Event(), ocp.CompositeCheckpointHandler.finalize

    def held(handler, folder):
        assert go.wait(60)
        finish(handler, folder)

    monkeypatch.setattr(ocp.CompositeCheckpointHandler, "finalize", held)
    step, state, mesh = wide_step(1, 1)
    saved = checkpoints.Checkpoints(tmp_path / "checkpoints")
    model, training = to_items(state, Wide())
    saved.save(0, model=model, training=training, meta={"class_names": []})
    expected = np.ones((8, 40))
    step(state, meshes.to_devices({"x": np.ones((16, 8), np.float32)}, mesh))
    assert not (tmp_path / "checkpoints" / "0").exists()
    go.set()
    assert saved.latest_step() == 0
    saved.close()
    np.testing.assert_array_equal(stored_arrays(tmp_path, 0)[0]["matrix"], expected)


def test_files_of_an_epoch_are_kept_again_after_a_kill_before_its_end(tmp_path, monkeypatch):
    def fail(*_):
        raise RunError("the disk is full")

    kept = []
    run = toys.run(toys.Line(), tmp_path / "run", keep=kept.append)
    monkeypatch.setattr(run.checkpoints, "rank", fail)
    run.resume()
    with pytest.raises(RunError, match="the disk is full"):
        run.fit()
    run.close()
    assert kept == [1]
    toys.fitted(toys.Line(), tmp_path / "run", keep=kept.append)
    assert kept == [1, 1, 2, 3]


def test_other_processes_log_and_show_nothing(tmp_path, monkeypatch, capsys):
    def before(step):
        if step == 3:
            raise RunError("enough")  # before the first checkpoint, which is all processes' work

    made = toys.run(toys.Line(), tmp_path / "run", before=before)
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    made.resume()
    with pytest.raises(RunError, match="enough"):
        made.fit()
    made.close()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["checkpoints"]
    assert capsys.readouterr().err == ""


def test_a_process_that_fails_does_not_wait_for_what_the_first_saves_in_a_bucket(tmp_path, monkeypatch):
    made = toys.run(toys.Line(), tmp_path / "run")
    made.checkpoints._in_bucket, made.checkpoints._writing = True, (7, contextlib.ExitStack())
    monkeypatch.setattr(jax, "process_index", lambda: 1)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(checkpoints.processes, "of_first", lambda action: pytest.fail("waits for the first"))
    assert made.last_saved() == "no checkpoint was written yet"
    made.close()
