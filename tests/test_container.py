"""The Dockerfile, which is not built here: the files and commands that it names exist."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

from cfmlc_jax.commands import COMMANDS

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_what_is_copied_is_sent_to_docker_and_builds_a_wheel(tmp_path):
    copied = {name for line in re.findall(r"^COPY (?!--)(.*)$", TEXT, re.M) for name in line.split()[:-1]}
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    assert copied == sent
    for name in copied - {"constraints.txt"}:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy)(ROOT / name, tmp_path / name)
    assert (ROOT / "constraints.txt").exists()
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").iterdir()
    names = zipfile.ZipFile(wheel).namelist()
    assert {"cfmlc_jax/configs/coco.py", "cfmlc_jax/docs/data.md", "cfmlc_jax/scripts/serve_onnx.py"} <= set(
        names
    )


def test_it_names_extras_and_commands_that_exist():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = re.findall(r"^ARG EXTRAS=(\w+)$", TEXT, re.M)
    assert extras
    assert set(extras) <= project["optional-dependencies"].keys()
    assert set(re.findall(r"cfmlc-\w+", TEXT)) <= COMMANDS.keys()
    # constraints.txt is of this Python.
    assert set(re.findall(r"^FROM (\S+)", TEXT, re.M)) == {"python:3.11-slim"}


def test_it_runs_as_a_user_in_a_volume():
    steps = re.findall(r"^(USER|WORKDIR|VOLUME) (\S+)$", TEXT.rpartition("FROM")[2], re.M)
    assert steps == [("USER", "cfmlc"), ("WORKDIR", "/workspace"), ("VOLUME", "/workspace")]
