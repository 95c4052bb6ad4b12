"""An out-of-memory error is one line that names what takes memory."""

import re
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax import config as configs
from cfmlc_jax.classify.memory import needed_for
from cfmlc_jax.engine import memory
from cfmlc_jax.engine.plan import Memory
from cfmlc_jax.engine.step import TrainStep
from cfmlc_jax.errors import InputError, RunError

TINY = Path(__file__).parents[1] / "configs" / "tiny.py"


def on_the_device():
    jax.block_until_ready(jnp.zeros((1 << 50,), jnp.float32) + 1)


def on_the_host():
    np.zeros(1 << 55)


def in_python():
    raise MemoryError


@pytest.mark.parametrize(
    ("take", "where"),
    [
        (on_the_device, "out of memory on the device, cpu (RESOURCE_EXHAUSTED: Out of memory"),
        (on_the_host, "out of memory on the host (Unable to allocate 256. PiB"),
        (in_python, "out of memory on the host (no details)"),
    ],
)
@pytest.mark.parametrize("section", ["train", "evaluate"])
def test_out_of_memory_errors_name_the_fields_to_reduce(take, where, section):
    config = configs.default()
    config[section].batch_size = 77
    with pytest.raises(RunError) as error, needed_for("validation", config, section):
        take()
    message = str(error.value)
    assert message.startswith(f"validation: {where}")
    assert f"{section}.batch_size (now 77), views.image_size (now 448)" in message
    assert "model.dtype" in message
    assert "\n" not in message


def test_other_errors_are_unchanged():
    with pytest.raises(InputError), memory.explained("prediction", "less"):
        raise InputError("no")
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"), memory.explained("prediction", "less"):
        raise jax.errors.JaxRuntimeError("INTERNAL: a defect")


MOST = 14.25 * 2**30
NEED = Memory(arguments=3 * 2**30, outputs=0, temporaries=300 * 2**30)


@pytest.mark.parametrize(
    ("text", "need", "limit", "words"),
    [
        (
            "RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in memory space hbm. Used 20.12G of 15.75G hbm. Exceeded hbm capacity by 4.37G.",
            NEED,  # the compiler's own number is exact
            None,
            "; it needs 20.1 GiB, and the device has 15.8 GiB; less",
        ),
        (
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 3221225472 bytes.",
            None,
            MOST,
            "; 3 GiB more were asked for, and the device has 14.2 GiB; less",
        ),
        (
            "RESOURCE_EXHAUSTED: Out of memory while trying to allocate 3.50GiB.\nBufferAssignment…",
            NEED,
            MOST,
            "; it needs 303 GiB on each device, and the device has 14.2 GiB, room for about 4 of the 128 images at once; less",
        ),
        ("RESOURCE_EXHAUSTED: no details", NEED, None, "; it needs 303 GiB on each device; less"),
        ("RESOURCE_EXHAUSTED: no details", None, MOST, "; the device has 14.2 GiB; less"),
        ("RESOURCE_EXHAUSTED: no details", None, None, "(RESOURCE_EXHAUSTED: no details); less"),
    ],
)
def test_what_is_needed_and_what_there_is(monkeypatch, text, need, limit, words):
    class Device:
        platform, device_kind = "tpu", "TPU v5 lite"

        def memory_stats(self):
            return None if limit is None else {"bytes_limit": int(limit), "bytes_in_use": 7}

    monkeypatch.setattr(jax, "local_devices", lambda: [Device()])
    asked = None if need is None else lambda: need
    with pytest.raises(RunError) as error, memory.explained("training", "less", asked, images=128):
        raise jax.errors.JaxRuntimeError(text)
    assert words in str(error.value)
    assert "\n" not in str(error.value)


def test_peaks_are_of_the_fullest_device(monkeypatch):
    def device(stats):
        return types.SimpleNamespace(memory_stats=lambda: stats)

    counts = [{"peak_bytes_in_use": 2**30}, None, {"peak_bytes_in_use": 3 * 2**29}, {}]
    monkeypatch.setattr(jax, "local_devices", lambda: [device(each) for each in counts])
    usage = memory.peak_usage()
    assert usage["device_peak_gib"] == 1.5
    assert 0.05 < usage["host_peak_gib"] < 1000
    monkeypatch.setattr(jax, "local_devices", lambda: [device(None)])
    assert [*memory.peak_usage()] == ["host_peak_gib"]


def test_a_need_that_cannot_be_computed_is_left_out():
    def need():
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: the compiler too")

    words = r"TiB more were asked for, and this machine has .*iB; less"
    with pytest.raises(RunError, match=words), memory.explained("training", "less", need):
        on_the_device()


@pytest.mark.parametrize(
    ("limit", "reason", "there"),
    [
        # Known before the step, which the system might answer by killing the process.
        (
            8 * 2**20,
            "the compiled program was not run",
            r", and this machine has 8 MiB, room for about \d+ of the 80 images at once",
        ),
        # The program's memory is computed when the error has occurred, from the shapes of the run.
        (None, "Out of memory", ""),
    ],
)
def test_a_run_that_is_too_large_names_its_need_and_the_way_out(command, monkeypatch, limit, reason, there):
    def exhausted(self, state, batch):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")

    monkeypatch.setattr(TrainStep, "__call__", exhausted)
    monkeypatch.setattr(memory, "limit_of", lambda device: limit)
    code, _, err = command(f"--config={TINY}", "--config.effect.kinds=()", "--config.train.batch_size=80")
    assert code == 1
    line = err.splitlines()[-1]
    assert re.search(
        rf"^error: training: out of memory on the device, cpu \(RESOURCE_EXHAUSTED: {reason}\); it needs \S+ MiB on each "
        rf"device{there}; raise train.micro_batches \(now 1\), make",
        line,
    )
    assert line.endswith("--mode=plan --memory=24G finds what fits into 24 GiB")
