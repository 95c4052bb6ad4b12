"""The notebooks as they are kept: executed in order without an error, small, and with commands that are understood.

scripts/docs.sh executes them.
"""

import base64
import json
import re
import shlex
import sys
from pathlib import Path

import pytest

from cfmlc_jax import main as command

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "docs" / "notebooks"
SCRIPT = "run_notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]
LINK = re.compile(r"\]\(([^)\s]+)\)")
# What stands for the variables that the first cell of each notebook sets.
VARIABLES = {
    "ROOT": str(ROOT), "RUN": "runs/scenes", "PHOTOS": "photos", "WEIGHTS": "runs/digits", "MODEL": "resnet_small",
    "SIZE": "64", "EPOCHS": "2", "PRETRAINING_EPOCHS": "2", "SCENES": "320",
}  # fmt: skip


def cells(path, kind):
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == kind]


def source(cell):
    return "".join(cell["source"])


def test_notebooks_are_small():
    assert NAMES == ["fine_tune", "look_inside"]
    assert sum(path.stat().st_size for path in NOTEBOOKS) < 600_000


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_a_notebook_is_kept_as_it_was_executed(path):
    code = cells(path, "code")
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell["outputs"]]
    assert "error" not in {output["output_type"] for output in outputs}
    texts = ["".join(output.get("text", output.get("data", {}).get("text/plain", ""))) for output in outputs]
    assert not [text for text in texts if re.search(r"/(tmp|root|home)/|Traceback|Warning", text)]
    pictures = [output["data"]["image/jpeg"] for output in outputs if "image/jpeg" in output.get("data", {})]
    assert len(pictures) >= 2
    assert all(base64.b64decode(picture).startswith(b"\xff\xd8") for picture in pictures)
    assert "image/png" not in json.dumps(outputs)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_links_of_a_notebook_lead_somewhere(path):
    targets = [
        link.partition("#")[0] for cell in cells(path, "markdown") for link in LINK.findall(source(cell))
    ]
    assert targets
    assert [target for target in targets if not (FOLDER / target).exists()] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_trainings_of_a_notebook_parse(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    trainings = []
    for cell in cells(path, "code"):
        text = source(cell).replace("\\\n", " ")
        for line in re.findall(r"^python -m cfmlc_jax\.main (.*?)(?:>|$)", text, re.M):
            words = [re.sub(r"\$(\w+)", lambda name: VARIABLES[name[1]], word) for word in shlex.split(line)]
            monkeypatch.setattr("sys.argv", ["main", *words])
            trainings.append(command.parse(command.define_flags(), ["main", *words]))
    assert len(trainings) == {"fine_tune": 2, "look_inside": 1}[path.stem]
    assert all(config is not None for config in trainings)


def test_what_cannot_be_executed_is_named(script, monkeypatch, capsys):
    monkeypatch.setenv(script.QUICK, "")  # restored afterwards
    monkeypatch.setitem(sys.modules, "nbclient", None)
    assert script.main(["--quick"]) == 1
    assert capsys.readouterr().err == "error: nbclient is missing; pip install 'cfmlc_jax[notebooks]'\n"
    for arguments, message in (
        (["look_outside"], "'look_outside' is not one of fine_tune, look_inside"),
        (["--quick", "--write"], "--quick makes outputs that nobody should read"),
    ):
        with pytest.raises(SystemExit):
            script.main(arguments)
        assert message in capsys.readouterr().err
