"""An out-of-memory error is one line that names what takes memory."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax import config as configs
from cfmlc_jax.classify.memory import needed_for
from cfmlc_jax.engine import memory
from cfmlc_jax.errors import InputError, RunError


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
