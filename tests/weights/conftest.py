"""Public weights on a server of this machine, and a cache of their own for each test."""

import sys

import pytest
from web import Server

from cfmlc_jax.weights import __main__ as command


@pytest.fixture
def server(monkeypatch):
    with Server() as server:
        monkeypatch.setenv("CFMLC_MIRROR", server.url)
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture(autouse=True)
def cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("CFMLC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    return tmp_path / "cache" / "weights"


@pytest.fixture
def weights(monkeypatch, capsys):
    """Runs python -m cfmlc_jax.weights: (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["weights", *arguments])
        code = command.main(list(arguments))
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run
