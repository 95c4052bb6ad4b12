"""Two processes on one machine compute the same step as one process."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np

from cfmlc_jax import checkpoint

TESTS = Path(__file__).parents[1]
PATHS = os.pathsep.join([str(TESTS.parent), str(TESTS)])

PROGRAM = """
import sys
from pathlib import Path
import jax
jax.config.update("jax_num_cpu_devices", int(sys.argv[4]))
if int(sys.argv[2]) > 1:
    jax.distributed.initialize(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
import numpy as np
from jax.experimental import multihost_utils
from cfmlc_jax.checkpoint import Checkpoints
from cfmlc_jax.data.evaluation import evaluation_batches
from cfmlc_jax.data.pipeline import train_batches
from cfmlc_jax.data.workers import Reading
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.data.views.patches import ToViews
from cfmlc_jax.causal.patches import POOLINGS
from cfmlc_jax.classify.patching import HostViews
from cfmlc_jax.classify.scoring import Score as score_step
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.step import gather
from cfmlc_jax.models.backbones import resnet
from cfmlc_jax.models.classifier import Classifier
from cfmlc_jax.models.heads.linear import LinearHead
import optax
from training import Training, objective

meshes.LEAST_SPLIT = 2
mesh = meshes.create(fsdp=4)
model = Classifier(
    backbone=resnet.ResNet(stage_sizes=(1,), block=resnet.BasicBlock, width=8, small_stem=True),
    head=LinearHead(10, "cross"),
)
run = Training(model, (1, 5, 32, 32, 3), objective(), optax.sgd(1e-3), mesh=mesh, ema_decay=0.9).start()
reading = Reading(process=jax.process_index(), processes=jax.process_count(), threads=1)
source, to_views = Scenes("train", num_scenes=22), ToViews(size=32, grid=2)
for batch in train_batches(source, to_views, batch_size=8, epochs=1, seed=0, reading=reading):
    assert run.update(batch) == -1
score = score_step(model, HostViews(2), POOLINGS["pivot"], kinds=("whole", "pivot"), null="mean", mesh=mesh)
positions, logits = [], []
for batch in evaluation_batches(source, to_views, batch_size=8, reading=reading):
    on_devices = meshes.to_devices(batch, mesh)
    scores = gather(score(run.average, run.mean_colour, on_devices["views"]), mesh)
    logits.append(np.stack([np.asarray(scores[name]) for name in sorted(scores) if name != "attention"], axis=1))
    positions.append(np.asarray(gather(on_devices["index"], mesh)))
positions, logits = np.concatenate(positions), np.concatenate(logits)
kept = positions >= 0
assert sorted(positions[kept]) == list(range(22))
leaves = [np.asarray(gather(leaf, mesh)) for leaf in jax.tree.leaves((run.variables, run.tally))]
checkpoints = Checkpoints(Path(sys.argv[5]).with_suffix(""))
checkpoints.save(1, model=run.variables, training=run.tally, meta={"class_names": []})
if jax.process_count() > 1:  # of the next one a part is damaged that only process 1 reads
    checkpoints.save(2, model=run.variables, training=run.tally, meta={"class_names": []})
    checkpoints.wait()
    multihost_utils.sync_global_devices("saved")
    for file in (checkpoints.path(2) / "model" / "ocdbt.process_1" / "d").iterdir():
        if jax.process_index() == 0:
            file.write_bytes(b"")
    multihost_utils.sync_global_devices("damaged")
    model, training = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), (run.variables, run.tally)
    )
    lines = []
    checkpoints.restore_latest(model=model, training=training, check=lambda path, meta: None, warn=lines.append)
    assert checkpoints.latest_step() == 1
    (line,) = lines
    assert line.startswith("checkpoint 2 is damaged (") and line.endswith("resuming from the one before")
checkpoints.close()
if jax.process_index() == 0:
    np.savez(sys.argv[5], *leaves, logits=logits[kept][np.argsort(positions[kept])])
"""


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def run(path, processes, devices_each):
    address = free_address()
    environment = os.environ | {
        "PYTHONPATH": PATHS,
        "XLA_FLAGS": "--xla_backend_optimization_level=0",
    }
    arguments = [address, str(processes)]
    started = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments, str(i), str(devices_each), str(path)],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for i in range(processes)
    ]
    for process in started:
        _, errors = process.communicate(timeout=200)
        assert process.returncode == 0, errors
    with np.load(path) as arrays:
        return dict(arrays)


def test_two_processes_equal_one_process(tmp_path):
    one = run(tmp_path / "one.npz", 1, 4)
    two = run(tmp_path / "two.npz", 2, 2)
    assert one.keys() == two.keys()
    for name, expected in one.items():
        np.testing.assert_allclose(two[name], expected, rtol=2e-5, atol=1e-6, err_msg=name)
    assert (tmp_path / "damaged" / "2").is_dir()
    # What two processes saved, each one half of every array, one process restores.
    restored = jax.tree.leaves(checkpoint.read_part(*whole(tmp_path / "two" / "1")))
    assert len(restored) > 10
    for i, leaf in enumerate(restored):
        np.testing.assert_array_equal(leaf, two[f"arr_{i}"])


def whole(path):
    """A checkpoint, and the shapes of its model on a single device."""
    one = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return path, jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=one), checkpoint.model_shapes(path)
    )
