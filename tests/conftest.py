"""A strict test process: forced devices, no silent rank promotion."""

import os

# Compilation is most of the tests' time: LLVM's optimisations, which change no result, are left out.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
os.environ["JAX_PLATFORMS"] = "cpu"
# What one process has compiled the others load: workers, the commands that tests run, the next run of the tests.
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"

import importlib.util
import subprocess
import sys
import time
from pathlib import Path

import fuzzing
import jax
import numpy as np
import pytest

from cfmlc_jax import files, main
from cfmlc_jax.engine import compilation

jax.config.update("jax_numpy_rank_promotion", "raise")
# JAX reads XLA_FLAGS at the first use of a device: here, because tests set other flags for commands.
jax.devices()
fuzzing.register_profile()

CACHE = "JAX_COMPILATION_CACHE_DIR"
GOLDEN = Path(__file__).parent / "golden"
SCRIPTS = Path(__file__).parents[1] / "scripts"


def pytest_configure(config):
    if CACHE not in os.environ:  # workers inherit it
        os.environ[CACHE] = str(kept_programs())
        config.add_cleanup(lambda: os.environ.pop(CACHE))
    # JAX has read the environment already; and commands keep nothing in the user's cache.
    jax.config.update("jax_compilation_cache_dir", os.environ[CACHE])


def kept_programs():
    """The folder of compiled programs, kept from one run of the tests to the next: without it they take twice as long."""
    folder = files.user_cache("tests") / compilation.processor()
    folder.mkdir(parents=True, exist_ok=True)
    long_ago = time.time() - 30 * 24 * 3600
    for file in folder.iterdir():
        if file.stat().st_atime < long_ago:
            file.unlink(missing_ok=True)
    return folder


@pytest.fixture
def golden():
    """Loader of a golden array file by name: dict of arrays."""

    def load(name):
        with np.load(GOLDEN / name) as arrays:
            return dict(arrays)

    return load


@pytest.fixture(scope="module")
def script(request):
    """The script that a test file is about, as a module: scripts/<its SCRIPT>.py."""
    name = request.module.SCRIPT
    spec = importlib.util.spec_from_file_location(name, SCRIPTS / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]


@pytest.fixture
def command(monkeypatch, tmp_path, capsys):
    """Runs the command line in this process, in an empty folder: (exit code, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["main", *arguments])
        code = main.main()
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


@pytest.fixture
def small_disk(tmp_path):
    """A disk of half a megabyte."""
    options = ["-t", "tmpfs", "-o", "size=512k", "tmpfs", str(tmp_path)]
    done = subprocess.run(["mount", *options], check=False, capture_output=True)
    if done.returncode:
        pytest.skip("this user may not mount a disk")
    yield tmp_path
    subprocess.run(["umount", str(tmp_path)], check=True)


@pytest.fixture
def rng():
    return np.random.default_rng(0)
