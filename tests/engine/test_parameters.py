"""The table of parameters."""

import jax
import jax.numpy as jnp

from cfmlc_jax.engine import parameters
from cfmlc_jax.engine.parameters import Network

PARAMS = {
    "backbone": {"kernel": jax.ShapeDtypeStruct((3, 100), jnp.float32)},
    "head": {"bias": jax.ShapeDtypeStruct((10,), jnp.bfloat16)},
}


def test_all_are_trained(tmp_path):
    (line,) = parameters.write(tmp_path, [Network("net", PARAMS)])
    assert line == "net: 310 parameters, 0.0 MB (parameters.txt lists them)"
    text = (tmp_path / "parameters.txt").read_text()
    rows = [" ".join(row.split()) for row in text.splitlines()]
    assert "| backbone/kernel | (3, 100) | float32 | 300 |" in rows
    assert "| head/bias | (10,) | bfloat16 | 10 |" in rows
    assert "frozen" not in text


def test_some_are_frozen(tmp_path):
    mask = {"backbone": {"kernel": False}, "head": {"bias": True}}
    lines = parameters.write(tmp_path, [Network("net", PARAMS, mask), Network("teacher", PARAMS, False)])
    assert lines[0] == "net: 310 parameters, 10 trained, 0.0 MB"
    assert lines[1].startswith("teacher: 310 parameters, 0 trained, 0.0 MB (")
    net, teacher = (tmp_path / "parameters.txt").read_text().split("teacher:")
    trained, frozen = net.split("\nfrozen\n")
    assert "head/bias" in trained
    assert "backbone/kernel" not in trained
    assert "backbone/kernel" in frozen
    assert "\ntrained\n" not in teacher
