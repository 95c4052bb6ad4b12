"""The wheel is whole: installed outside this checkout, it trains, predicts, reports and exports in an empty folder.

The wheel's environment borrows the packages of this process, and has nothing of this checkout. With $CFMLC_WHEEL_PYTHON, as
from scripts/test.sh --wheel, it is of that Python and has what the wheel requires, downloaded, and no more.
"""

import importlib.util
import json
import os
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import cfmlc_jax
from cfmlc_jax.commands import COMMANDS

ROOT = Path(__file__).parents[1]
BARE_PYTHON = os.environ.get("CFMLC_WHEEL_PYTHON")
# A training of one epoch of four steps, which starts from a configuration of the package and imports a module beside it.
MINE = """
import ours
from cfmlc_jax.config import shipped


def get_config(variant: str = ""):
    config = shipped.get_config("scenes:whole")
    config.data.scenes.num_train, config.data.scenes.num_test = 32, 16
    config.data.test_splits = ("test_iid",)
    config.views.image_size = 32
    config.optim.ema_decay = 0.0
    config.train.batch_size, config.train.epochs = 8, ours.EPOCHS
    config.evaluate.batch_size = 16
    config.effect.kinds = ()
    return config
"""


def build(folder, out, *targets):
    command = [sys.executable, "-m", "hatchling", "build", "-d", str(out), *targets]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """(wheel, sdist)."""
    out = tmp_path_factory.mktemp("built")
    build(ROOT, out)
    return next(out.glob("*.whl")), next(out.glob("*.tar.gz"))


def outside(**variables):
    """The environment of a user who has no checkout."""
    own = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "CFMLC_"))}
    return own | {"XLA_FLAGS": "--xla_backend_optimization_level=0"} | variables


class Installed:
    """Runs what an installation brings, in an empty folder."""

    def __init__(self, environment, folder):
        self._programs, self.folder = environment / "bin", folder

    def start(self, program, *arguments):
        return subprocess.Popen(
            [self._programs / program, *arguments],
            cwd=self.folder,
            env=outside(),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def output(self, process):
        out, err = process.communicate()
        assert process.returncode == 0, f"{process.args}: {out}{err}"
        return out

    def run(self, program, *arguments):
        return self.output(self.start(program, *arguments))


@pytest.fixture(scope="module")
def installed(built, tmp_path_factory):
    environment, folder = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("empty")
    creation = [BARE_PYTHON or sys.executable, "-m", "venv", "--without-pip", str(environment)]
    subprocess.run(creation, check=True, env=outside())
    python = environment / "bin" / "python"
    version = "import sys, sysconfig; print(sys.version_info < (3, 12), sysconfig.get_path('purelib'))"
    old, site_packages = subprocess.check_output([python, "-c", version], text=True).split(maxsplit=1)
    if BARE_PYTHON:
        constraints = ROOT / ("constraints.txt" if old == "True" else "constraints-newest.txt")
        options = ["--constraint", str(constraints)]
    else:
        options = ["--no-deps", "--no-index"]
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", "install"]
    subprocess.run([*pip, "--quiet", *options, str(built[0])], check=True)
    if not BARE_PYTHON:
        # A path in a .pth file is searched after the wheel, and the .pth files there, an editable install's, are not read.
        borrowed = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
        Path(site_packages.strip(), "borrowed.pth").write_text("\n".join(borrowed))
    return Installed(environment, folder)


def test_what_is_in_the_wheel(built):
    names = set(zipfile.ZipFile(built[0]).namelist())
    package = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "cfmlc_jax").rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    shipped = {
        f"cfmlc_jax/{path.relative_to(ROOT)}"
        for path in (ROOT / "configs").rglob("*.py")
        if path.parent.name != "studies"
    }
    shipped |= {f"cfmlc_jax/docs/{path.name}" for path in (ROOT / "docs").glob("*.md")}
    shipped.add("cfmlc_jax/scripts/serve_onnx.py")
    assert {name for name in names if ".dist-info/" not in name} == package | shipped
    assert "cfmlc_jax/py.typed" in names


def test_the_sdist_builds_the_same_wheel(built, tmp_path):
    with tarfile.open(built[1]) as archive:
        archive.extractall(tmp_path, filter="data")
    (source,) = tmp_path.iterdir()
    build(source, tmp_path / "again", "-t", "wheel")
    (again,) = (tmp_path / "again").iterdir()
    assert again.read_bytes() == built[0].read_bytes()
    assert {"tests", "docs", "scripts", "constraints.txt"} <= {path.name for path in source.iterdir()}


def test_every_command_has_an_entry_point():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["scripts"].keys() == COMMANDS.keys()
    for name, value in project["scripts"].items():
        function = EntryPoint(name, value, "console_scripts").load()
        assert function.args == (name,)
        assert importlib.util.find_spec(COMMANDS[name]) is not None


def test_an_empty_folder_and_the_wheel_alone(installed):
    Image.fromarray(np.full((40, 40, 3), 90, np.uint8)).save(installed.folder / "photo.png")
    (installed.folder / "mine.py").write_text(MINE)
    (installed.folder / "ours.py").write_text("EPOCHS = 1\n")
    out = installed.run("cfmlc-train", "--config=mine.py", "--workdir=run")
    assert "report/index.html" in out
    started = {
        "predict": ("cfmlc-predict", "--checkpoint=run", "photo.png", "--format=jsonl", "--top=1"),
        "report": ("cfmlc-report", "run"),
        "weights": ("cfmlc-weights", "list", "torchvision:resnet101"),
        "export": ("cfmlc-export", "run", "exported"),
        "data": ("cfmlc-data", "--help"),
        "version": ("cfmlc-weights", "--version"),
        "where": ("python", "-c", "from cfmlc_jax.config import shipped; print(shipped.located('coco'))"),
    }
    running = {name: installed.start(*words) for name, words in started.items()}
    printed = {name: installed.output(process) for name, process in running.items()}
    assert len(json.loads(printed["predict"])["labels"]) == 1
    assert printed["report"].strip().endswith("report/index.html")
    assert "torchvision:resnet101.IMAGENET1K_V2" in printed["weights"]
    assert (installed.folder / "exported" / "model.safetensors").exists()
    assert "usage: cfmlc-data " in printed["data"]
    assert "python -m" not in printed["data"]
    assert printed["version"] == f"cfmlc_jax {cfmlc_jax.__version__}\n"
    assert printed["where"].strip().endswith("site-packages/cfmlc_jax/configs/coco.py")
    if BARE_PYTHON:
        _, err = installed.start("cfmlc-export", "run", "run.onnx").communicate()
        assert err.startswith("error: ")
        assert "pip install 'cfmlc_jax[onnx]'" in err
