"""Configurations that come with the package are found by name, from anywhere."""

import re
import runpy
import sys
from pathlib import Path

import pytest

import cfmlc_jax
from cfmlc_jax import installed, main
from cfmlc_jax.config import shipped
from cfmlc_jax.errors import InputError

FOLDER = Path(__file__).parents[2] / "configs"


@pytest.fixture(autouse=True)
def empty_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def parsed(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["main", *arguments])  # where overrides are looked for
    return main.parse(main.define_flags(), sys.argv)


def test_all_configurations_and_no_study_have_a_name():
    files = {str(path.relative_to(FOLDER).with_suffix("")) for path in FOLDER.rglob("*.py")}
    assert set(shipped.names()) == {name for name in files if not name.startswith("studies/")}
    assert {"coco", "scenes", "reference/resnet101"} <= set(shipped.names())
    assert all("get_config" in runpy.run_path(str(FOLDER / f"{name}.py")) for name in shipped.names())


@pytest.mark.parametrize("flag", ["--config=", "-config=", "--config "])
@pytest.mark.parametrize(
    ("text", "source"),
    [
        ("coco", "coco"),
        ("reference/resnet101", "coco"),
        ("reference/resnet101:voc2007", "voc2007"),
        ("configs/voc2007.py", "voc2007"),  # as documents write it
        (str(FOLDER / "vg256.py"), "vg256"),
    ],
)
def test_a_configuration_by_name(monkeypatch, flag, text, source):
    assert parsed(monkeypatch, *f"{flag}{text}".split(" ")).data.source == source


def test_fields_behind_a_name(monkeypatch):
    config = parsed(monkeypatch, "--config=scenes:smoke", "--config.train.epochs=7")
    assert (config.train.epochs, config.data.scenes.num_train) == (7, 640)


def test_a_file_wins_and_a_folder_does_not(monkeypatch, empty_folder):
    (empty_folder / "scenes").mkdir()
    assert parsed(monkeypatch, "--config=scenes").data.source == "scenes"
    (empty_folder / "configs").mkdir()
    (empty_folder / "configs" / "coco.py").write_text(
        "from cfmlc_jax.config import shipped\n\n\ndef get_config():\n"
        "    config = shipped.get_config('scenes:smoke')\n    config.train.epochs = 3\n    return config\n"
    )
    config = parsed(monkeypatch, "--config=configs/coco.py")
    assert (config.data.source, config.train.epochs) == ("scenes", 3)
    assert parsed(monkeypatch, "--config=coco").data.source == "coco"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cocco", "'cocco' is neither a file nor a configuration of this package; did you mean coco?"),
        ("resnet101", "did you mean reference/resnet101?"),
        ("configs/scene.py:smoke", "'configs/scene.py' is neither .* did you mean scenes or cgn_scenes?"),
        ("", r"give FILE.py with a get_config\(\), or one of cgn_digits, .*, reference/tresnet_l_v2_in21k$"),
        ("studies/evidence", "is neither a file nor a configuration"),
        ("x" * 5000, r"'xxx+…? is neither a file nor a configuration"),
    ],
)
def test_an_unknown_name(monkeypatch, text, words):
    with pytest.raises(InputError, match=words) as caught:
        parsed(monkeypatch, f"--config={text}")
    assert len(str(caught.value)) < 800


def test_a_variant_that_a_configuration_lacks(command):
    code, _, err = command("--config=scenes:smok")
    assert code == 1
    assert "no variant 'smok'; leave it out, or take one of ('smoke'" in err.splitlines()[-1]


def test_names_in_the_help(command):
    code, out, _ = command("--help")
    assert code == 0
    assert all(name in " ".join(out.split()) for name in shipped.names())


def test_the_folder_of_a_wheel_is_inside_the_package(monkeypatch, empty_folder):
    package = empty_folder / "site-packages" / "cfmlc_jax"
    for name in ("configs", "docs"):
        (package / name).mkdir(parents=True)
        (package.parent / name).mkdir()  # somebody else's
    monkeypatch.setattr(cfmlc_jax, "__file__", str(package / "__init__.py"))
    assert shipped.folder() == package / "configs"
    assert installed.document("data.md") == str(package / "docs" / "data.md")


def test_documents_that_messages_name_are_there():
    package = Path(cfmlc_jax.__file__).parent
    texts = [path.read_text(encoding="utf-8") for path in package.rglob("*.py")]
    names = {name for text in texts for name in re.findall(r"installed\.document\(['\"](.*?)['\"]\)", text)}
    assert len(names) > 2
    assert all(Path(installed.document(name)).is_file() for name in names)


def test_the_start_for_ones_own_in_the_document(monkeypatch, empty_folder):
    document = (FOLDER.parent / "docs" / "fork.md").read_text(encoding="utf-8")
    (empty_folder / "mine.py").write_text(re.search(r"```python\n# mine\.py\n(.*?)```", document, re.S)[1])
    config = parsed(monkeypatch, "--config=mine.py")
    assert (config.data.source, config.model.name, config.train.epochs) == ("voc2007", "resnet101", 20)
    (empty_folder / "own_image").write_text("")
    with pytest.raises(InputError, match=r"^'own_image' is not a configuration .*; did you mean own_images"):
        shipped.get_config("own_image")
