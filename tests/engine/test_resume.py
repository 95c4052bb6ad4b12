"""A run that is killed and resumed ends bit-identical to an uninterrupted run."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from cfmlc_jax import checkpoint as checkpoints

TESTS = Path(__file__).parent.parent
# One device, as each process traces and compiles its programs.
ENVIRONMENT = os.environ | {
    "PYTHONPATH": str(TESTS.parent),
    "XLA_FLAGS": "--xla_backend_optimization_level=0",
}
# Without effects the evaluation is the program of the validation: each process compiles two, not three.
CONFIG = (f"--config={TESTS / 'configs' / 'tiny.py'}", "--config.effect.kinds=()")


def start(workdir, *flags, program=("-m", "cfmlc_jax.main")):
    arguments = [*CONFIG, f"--workdir={workdir}", *flags]
    return subprocess.Popen(
        [sys.executable, *program, *arguments],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(process):
    output, _ = process.communicate(timeout=300)
    return process.returncode, output


def interrupt(workdir, number, *flags):
    """Start a run, wait for a new checkpoint, and send a signal at a random moment after it."""
    process = start(workdir, *flags)
    before = saved(workdir)
    while not saved(workdir) - before:
        assert process.poll() is None, finish(process)
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.3))
    process.send_signal(number)
    code, output = finish(process)
    return code, output


# Sends itself a signal before it scores the n-th split, when the checkpoint of the first epoch is complete. After
# SIGTERM it continues to the next poll.
SIGNALLED = """
import os, sys, time
from cfmlc_jax import main
from cfmlc_jax.classify import scoring
number, nth, checkpoint = int(sys.argv.pop(1)), int(sys.argv.pop(1)), sys.argv.pop(1)
score_readable, calls = scoring.score_readable, []

def signalled(*args, **kwargs):
    calls.append(args)
    if len(calls) == nth:
        while not os.path.exists(checkpoint):
            time.sleep(0.01)
        os.kill(os.getpid(), number)
    return score_readable(*args, **kwargs)

scoring.score_readable = signalled
sys.exit(main.main())
"""


def interrupt_scoring(workdir, number, nth):
    """Start a run that sends itself a signal before it scores the n-th split."""
    first = str(workdir / "checkpoints" / "20")
    return finish(start(workdir, program=["-c", SIGNALLED, str(int(number)), str(nth), first]))


def saved(workdir):
    folder = workdir / "checkpoints"
    return {path.name for path in folder.iterdir() if path.name.isdigit()} if folder.exists() else set()


def final(workdir):
    """All arrays of the last checkpoint, and the metrics without times."""
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(
            workdir / "checkpoints" / "40",
            args=ocp.args.Composite(model=ocp.args.StandardRestore(), training=ocp.args.StandardRestore()),
        )
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    metrics = [{k: v for k, v in line.items() if not k.startswith(("time/", "memory/"))} for line in lines]
    return (
        (restored.model, restored.training),
        metrics,
        json.loads((workdir / "report" / "results.json").read_text()),
    )


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("unbroken")
    code, output = finish(start(workdir))
    assert code == 0, output
    return final(workdir)


def assert_ends_as(unbroken, workdir):
    arrays, metrics, results = final(workdir)
    jax.tree.map(np.testing.assert_array_equal, arrays, unbroken[0])
    assert metrics == unbroken[1]
    assert results == unbroken[2]


def test_killed_at_a_random_step_it_ends_bit_identical(unbroken, tmp_path):
    """With worker processes; the run of the test of a corrupt checkpoint is killed without them."""
    flag = "--config.data.workers=2"
    code, output = interrupt(tmp_path, signal.SIGTERM, flag)
    assert code == 143, output
    assert "asked to end; saved step" in output
    assert "the same command resumes" in output
    code, output = interrupt(tmp_path, signal.SIGKILL, flag)
    assert code == -signal.SIGKILL, output
    code, output = finish(start(tmp_path, flag))
    assert code == 0, output
    assert "resuming at step" in output
    assert_ends_as(unbroken, tmp_path)


def test_killed_during_evaluation_it_ends_bit_identical(unbroken, tmp_path):
    # Killed between the save of the first epoch and its validation.
    code, output = interrupt_scoring(tmp_path, signal.SIGKILL, 1)
    assert code == -signal.SIGKILL, output
    assert "20" in saved(tmp_path)
    assert '"epoch"' not in (tmp_path / "metrics.jsonl").read_text()
    # The resumed run validates first. It is ended in the validation of the second epoch.
    code, output = interrupt_scoring(tmp_path, signal.SIGTERM, 2)
    assert code == 143, output
    assert "resuming at step 20 of 40" in output
    assert "asked to end; saved step 40 of 40, its validation comes next" in output
    # The resumed run validates first again. It is ended in the final evaluation.
    code, output = interrupt_scoring(tmp_path, signal.SIGTERM, 3)
    assert code == 143, output
    assert "asked to end; training is done and saved, its evaluation comes next" in output
    code, output = finish(start(tmp_path))
    assert code == 0, output
    assert "reading the first of" not in output
    assert "epoch 2" not in output
    assert_ends_as(unbroken, tmp_path)


def test_a_corrupt_latest_checkpoint_falls_back_and_ends_equal(unbroken, tmp_path):
    code, output = interrupt(tmp_path, signal.SIGKILL)
    assert code == -signal.SIGKILL, output
    code, output = interrupt(tmp_path, signal.SIGTERM)
    assert code == 143, output
    latest = max(saved(tmp_path), key=int)
    (tmp_path / "checkpoints" / latest / "model" / "manifest.ocdbt").write_bytes(b"broken")
    code, output = finish(start(tmp_path))
    assert code == 0, output
    assert f"checkpoint {latest} is damaged" in output
    assert (tmp_path / "damaged" / latest).is_dir()
    assert_ends_as(unbroken, tmp_path)


def test_a_loss_that_is_not_finite_ends_the_run_with_its_step_and_place(tmp_path):
    flags = ["--config.optim.learning_rate=1e30", "--config.train.checkpoint_every=1"]
    code, output = finish(start(tmp_path, *flags))
    assert code == 1, output
    last = output.strip().splitlines()[-1]
    assert last.startswith("error: step ")
    assert "is not finite; what was saved is intact" in last
    steps = saved(tmp_path)
    assert steps
    for step in steps:
        assert checkpoints.read_meta(tmp_path / "checkpoints" / step)["class_names"][0] == "digit 0"
