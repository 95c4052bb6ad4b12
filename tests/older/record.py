"""Records what the version before the restructuring wrote: small workdirs, and what that version made of them.

    cd CHECKOUT_OF_COMMIT_3389597 && PYTHONPATH=. python THIS_FILE OUT [NAME ...]

Run once, on the CPU, with jax 0.10; OUT is the folder of this file. OUT/<name>.tar.xz, for every run of `RUNS`:

- `workdir`: written by that version, its training ended by SIGTERM. Every array of a
  checkpoint was saved with its first 61 values repeated, so that it compresses to almost nothing; the
  format on disk is that version's own.
- `expected`: what that version then did with the workdir: `resumed/`, the same command again
  to its end (metrics.jsonl, results.json and samples of all arrays of the last checkpoint);
  `evaluated/`, the report folder of --mode=evaluate on the checkpoint; `predicted.jsonl`, its prediction
  for `picture`.

Paths of the recording machine, which Orbax writes in its marks of a finished save, are cut out.
"""

import contextlib
import json
import os
import shutil
import signal
import sys
import tarfile
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
from PIL import Image

KEPT = 61  # values of an array; a prime, so that no two filters are alike
SAMPLES = 8
SCENES = {"data.scenes.num_train": 48, "data.scenes.num_test": 16, "data.test_splits": ("test_iid",)}
TINY, DIGITS = "tests/configs/tiny.py", "configs/longtail_digits.py:smoke"
FEW_DIGITS = {
    "data.longtail.digits": 60,
    "data.longtail.num_test": 8,
    "train.batch_size": 32,
    "evaluate.latest": True,
}
WITHOUT_PIVOT = {"effect.kinds": ("whole",)}
# Configuration file, fields, and the step after which SIGTERM comes.
RUNS = {
    # In the second epoch, between two logs, behind a ranked checkpoint.
    "pat_t": (TINY, SCENES, 8),
    # At the end of an epoch, whose validation is still to come.
    "longtail": (DIGITS, FEW_DIGITS, 5),
    "asl": (TINY, SCENES | WITHOUT_PIVOT | {"method": "asl", "model.attention": "none"}, 2),
    "cells": (TINY, SCENES | WITHOUT_PIVOT | {"model.cells": "layer2"}, 2),
    "patch_size": (TINY, SCENES | {"views.patch_size": 16}, 2),
}
RESUMED = ("pat_t", "longtail")


def picture():
    """An image [48, 40, 3] that `predicted.jsonl` is of."""
    coarse = np.random.default_rng(0).integers(0, 256, (6, 5, 3), np.uint8)
    return Image.fromarray(np.kron(coarse, np.ones((8, 8, 1), np.uint8)))


def samples(tree):
    """Names of all arrays of a tree [n] and `SAMPLES` evenly spaced values of each [n, SAMPLES]."""
    named = jax.tree.leaves_with_path(tree)
    names = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in named]
    flat = [np.asarray(leaf, np.float64).ravel() for _, leaf in named]
    return names, np.stack([each[np.linspace(0, len(each) - 1, SAMPLES).astype(int)] for each in flat])


def arrays(checkpoint):
    """The items "model" and "training" of a checkpoint, as they lie there."""
    items = ocp.args.Composite(model=ocp.args.StandardRestore(), training=ocp.args.StandardRestore())
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(checkpoint.absolute(), args=items)
    return {"model": restored.model, "training": restored.training}


def repeated(leaf):
    """An array with its first values repeated."""
    values = np.resize(np.asarray(leaf).ravel()[:KEPT], leaf.shape).astype(leaf.dtype)
    return jax.device_put(values, leaf.sharding)


def anonymous(member):
    """A member of an archive without owner and time."""
    member.uid = member.gid = member.mtime = 0
    member.uname = member.gname = ""
    return member


def run(main, *arguments):
    sys.argv = ["main", *arguments]
    return main.main()


def record(name, out):
    from cfmlc_jax.loop import train

    from cfmlc_jax import main, predict
    from cfmlc_jax.checkpoint import manager

    file, fields, last = RUNS[name]
    flags = [f"--config={file}", *(f"--config.{field}={value}" for field, value in fields.items())]
    workdir, expected = out / name / "workdir", out / name / "expected"
    train_batches, save = train.train_batches, manager.Checkpoints.save

    def signalled(*args, start_step, **options):
        for step, batch in enumerate(train_batches(*args, start_step=start_step, **options), start_step + 1):
            if step == last:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    def save_small(self, step, *, model, training, meta):
        save(
            self,
            step,
            model=jax.tree.map(repeated, model),
            training=jax.tree.map(repeated, training),
            meta=meta,
        )

    train.train_batches, manager.Checkpoints.save = signalled, save_small
    assert run(main, *flags, "--config.train.checkpoint_every=0", f"--workdir={workdir}") == 143
    train.train_batches, manager.Checkpoints.save = train_batches, save

    scratch = out / name / "scratch"
    checkpoint = workdir / "checkpoints" / str(last)
    shutil.copytree(checkpoint, scratch / "alone")
    assert (
        run(main, "--mode=evaluate", f"--checkpoint={scratch / 'alone'}", f"--workdir={scratch / 'own'}") == 0
    )
    shutil.copytree(scratch / "own" / "report", expected / "evaluated")
    (expected / "evaluated" / "index.html").unlink()
    if name not in RESUMED:
        (expected / "evaluated" / "evidence.json").unlink()  # mostly pictures
    picture().save(scratch / "picture.png")
    predicted = [
        f"--checkpoint={checkpoint}",
        "--format=jsonl",
        f"--output={expected / 'predicted.jsonl'}",
        "--top=10",
    ]
    with contextlib.chdir(scratch):
        assert predict.main([*predicted, "picture.png"]) == 0
    if name in RESUMED:
        shutil.copytree(workdir, scratch / "resumed")
        arguments = ("--config.train.checkpoint_every=0", f"--workdir={scratch / 'resumed'}")
        assert run(main, *flags, *arguments) == 0
        (expected / "resumed").mkdir()
        shutil.copy(scratch / "resumed" / "report" / "results.json", expected / "resumed")
        shutil.copy(scratch / "resumed" / "metrics.jsonl", expected / "resumed")
        steps = [int(path.name) for path in (scratch / "resumed" / "checkpoints").iterdir()]
        names, values = samples(arrays(scratch / "resumed" / "checkpoints" / str(max(steps))))
        (expected / "resumed" / "arrays.json").write_text(
            json.dumps({name: row.tolist() for name, row in zip(names, values, strict=True)}, indent=0) + "\n"
        )
    shutil.rmtree(scratch)
    for mark in workdir.rglob("commit_success.txt"):
        mark.write_text(mark.read_text().replace(str(out), "runs"))
    with tarfile.open(out / f"{name}.tar.xz", "w:xz") as archive:
        for folder in (workdir, expected):
            archive.add(folder, folder.name, filter=anonymous)
    shutil.rmtree(out / name)


if __name__ == "__main__":
    # As in the tests' conftest.py, so that the same machine gives the same bits.
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    jax.config.update("jax_platforms", "cpu")
    out = Path(sys.argv[1]).absolute()
    for name in sys.argv[2:] or RUNS:
        record(name, out)
