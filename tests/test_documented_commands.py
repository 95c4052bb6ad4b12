"""Commands that documents, docstrings and messages name: each is run up to where its work would begin.

Flags are parsed and configurations loaded and checked by the commands themselves; what is cheap on
nothing but this repository is run. What cannot be is in `NOT_RUN`, with the reason.
"""

import argparse
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

from cfmlc_jax import buckets
from cfmlc_jax import config as configs
from cfmlc_jax import main as command
from cfmlc_jax.commands import COMMANDS as INSTALLED

ROOT = Path(__file__).parents[1]
TEXTS = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted((ROOT / "configs").rglob("*.py")),
    *sorted(path for path in (ROOT / "scripts").rglob("*") if path.suffix in (".py", ".sh")),
    *sorted((ROOT / "cfmlc_jax").rglob("*.py")),
]
# Beginnings of commands of which no test runs more than is said here.
NOT_RUN = {
    "pip install": "it needs the network; that its extras are there is checked",
    "pip wheel": "test_wheel.py builds the wheel",
    "python -m pip": "it needs the network",
    "git clone": "it needs the network",
    "docker build": "it needs Docker; test_container.py reads the Dockerfile",
    "docker run": "it needs Docker; what it runs is a command that is tested",
    "scripts/test.sh": "it runs this test; that it is executable is checked",
    "scripts/docs.sh": "it needs packages that tests do not; that it is executable is checked",
    ". .venv/bin/activate": "scripts/run.sh makes that folder",
}
COMMAND = re.compile(
    r"(?<![\w./-])(?P<python>python )?(?P<program>-m (?:cfmlc_jax|scripts)(?:\.\w+)+|scripts/\w+\.(?:py|sh)|cfmlc-\w+)(?P<rest>[^`\n]*)"
)
# The configuration of the examples in docs/fork.md, which tests/test_fork.py runs: this repository lacks their names.
EXAMPLES = "--config=tests/configs/tiny.py"
# Where the words of a command end: columns of remarks, remarks, the end of a string or of a sentence, and
# what a message adds only sometimes; but not inside single quotes.
END = re.compile(r"""'[^'\n]*'|(?P<end>  | #|[;)"\\]|,(?=\s|$)|\.(?=\s|$)| \(|\{f|$)""")
# Of the shell scripts the one that the others read.
SOURCED = "scripts/setup.sh"
# What stands for a value of the user's own.
VALUES = {"…": "x", "{name}": "coco", "{path}": "x"}


def commands():
    """(file, whether "python" precedes, program, words) of every command, each once.

    The program of an installed command is the module that it runs.
    """
    commands = {}
    for path in TEXTS:
        for match in COMMAND.finditer(path.read_text(encoding="utf-8")):
            ends = (each.start() for each in END.finditer(match["rest"]) if each["end"] is not None)
            rest = match["rest"][: next(ends)]
            words = _words(rest) if rest.startswith(" ") else []
            named = match["program"]
            # Other scripts without an interpreter are only spoken of.
            is_run = match["python"] or named.endswith(".sh") or named in INSTALLED
            if is_run and EXAMPLES not in words:
                key = (INSTALLED.get(named, named.removeprefix("-m ")), *words)
                commands.setdefault(key, (path.relative_to(ROOT), bool(match["python"])))
    return [(path, python, program, words) for (program, *words), (path, python) in commands.items()]


def _words(text):
    """The words; options in brackets are taken, the first of alternatives, and values for what is left out."""
    words = [word for word in shlex.split(re.sub(r"[\[\]]", " ", text)) if word not in ("…", "FLAG=VALUE")]
    for old, new in VALUES.items():
        words = [word.replace(old, new) for word in words]
    return [word.partition("|")[0] for word in words]


COMMANDS = commands()


class ParsedError(Exception):
    """A command understood its words and would begin to work."""


@pytest.fixture
def stops_behind_its_flags(monkeypatch):
    """Commands end with `ParsedError` where argparse has understood their words."""
    parse = argparse.ArgumentParser.parse_known_args

    def stop(parser, arguments=None, namespace=None, *, strict):
        _, unknown = parse(parser, arguments, namespace)
        if strict and unknown:
            parser.error(f"unrecognized arguments: {' '.join(unknown)}")
        raise ParsedError

    for name, strict in (("parse_args", True), ("parse_intermixed_args", True), ("parse_known_args", False)):
        monkeypatch.setattr(
            argparse.ArgumentParser, name, lambda *args, strict=strict: stop(*args, strict=strict)
        )


def test_commands_are_found():
    programs = {program for _, _, program, _ in COMMANDS}
    assert len(COMMANDS) > 60
    assert {"cfmlc_jax.main", "cfmlc_jax.predict", "cfmlc_jax.report", "scripts/run.sh"} <= programs
    scripts = {f"scripts/{path.name}" for path in (ROOT / "scripts").glob("*.py")}
    assert {program for program in programs if program.endswith(".py")} <= scripts


@pytest.mark.parametrize(
    ("path", "python", "program", "words"),
    COMMANDS,
    ids=[" ".join((program, *words)) for _, _, program, words in COMMANDS],
)
def test_every_documented_command_parses(monkeypatch, stops_behind_its_flags, path, python, program, words):
    monkeypatch.chdir(ROOT)
    # Buckets of documents do not exist, and reading them needs credentials.
    monkeypatch.setattr(buckets, "require_usable", lambda address: None)
    # Nor do runs.
    monkeypatch.setattr(command, "stored_config", lambda place: configs.default())
    if program.endswith(".sh"):
        assert not python
        assert os.access(program, os.X_OK) or program == SOURCED
    if program in ("cfmlc_jax.main", "scripts/run.sh"):
        monkeypatch.setattr(sys, "argv", ["main", *words])  # where overrides are looked for
        command.parse(command.define_flags(), sys.argv)
    if program.endswith(".sh") or program == "cfmlc_jax.main":
        return
    if program.startswith("scripts/"):
        assert python or os.access(program, os.X_OK)
    if not words:
        return
    monkeypatch.setattr(sys, "argv", [program, *words])
    monkeypatch.syspath_prepend(ROOT / "scripts")
    with pytest.raises(ParsedError):
        _module(program).main()


def _module(program):
    if program.startswith("scripts/"):
        return importlib.import_module(Path(program).stem)
    module = importlib.import_module(program)
    return module if hasattr(module, "main") else importlib.import_module(f"{program}.__main__")


DATA = [words for _, _, program, words in COMMANDS if program == "cfmlc_jax.data" and words]


@pytest.mark.parametrize("words", DATA, ids=map(" ".join, DATA))
def test_missing_data_is_reported(monkeypatch, tmp_path, capsys, words):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CFMLC_DATA", raising=False)
    assert _module("cfmlc_jax.data").main(words) == 1
    out = capsys.readouterr().out
    assert "PROBLEM" in out
    assert "incomplete" in out


def test_recipes_convert_weights_to_their_init_from(monkeypatch):
    """The command in a recipe's docstring names its backbone, and its init_from."""
    monkeypatch.chdir(ROOT)
    recipes = sorted((ROOT / "configs" / "reference").glob("*.py"))
    for path in recipes:
        _, out, model = re.search(
            r"cfmlc_jax\.torch_weights (\S+) (\S+) --model=(\S+)", path.read_text()
        ).groups()
        config = command.parse(command.define_flags(), ["main", f"--config={path}"])
        assert (out, model) == (config.init_from, config.model.name.removeprefix("q2l_"))
    assert recipes


def test_documented_extras_exist():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = {
        name
        for path in TEXTS
        for names in re.findall(r"(?:cfmlc_jax|'\.)\[(\w[\w,]*)\]|CFMLC_EXTRAS=(\w+)", path.read_text())
        for name in ",".join(filter(None, names)).split(",")
    }
    assert {"torch", "tfds", "cuda12"} <= named <= extras.keys()


def test_documented_fields_exist():
    """Of the configuration, as `--config.views.overlap=0.5` or in a document's `views.overlap=0.5`."""
    fields: dict = {}
    for system in configs.SYSTEMS:
        fields |= configs.flat(configs.to_json(configs.default(system)))
    sections = "|".join({name.partition(".")[0] for name in fields if "." in name})
    unknown = {
        (path.name, name)
        for path in TEXTS
        for prefixed, plain in re.findall(
            rf"--config\.([a-z_]\w*(?:\.\w+)*)(?==)|`((?:{sections})(?:\.\w+)+)(?==\S+`)", path.read_text()
        )
        if (name := prefixed or plain) not in fields
    }
    assert unknown == set()


def blocks_of(wanted):
    """The code blocks of a language in all documents."""
    return [
        block
        for path in TEXTS
        if path.suffix == ".md"
        for language, block in re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), re.M | re.S)
        if language == wanted
    ]


def test_scripts_for_clusters_can_be_read():
    """By the shell, which does not run them, and as YAML."""
    scripts, manifests = blocks_of("bash"), blocks_of("yaml")
    assert scripts
    assert manifests
    for script in scripts:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
    kinds = [each["kind"] for manifest in manifests for each in yaml.safe_load_all(manifest)]
    assert "JobSet" in kinds


def test_every_line_of_a_code_block_is_tested_or_listed():
    """Lines of documents' code blocks are commands that are understood here, or have a reason.

    README's blocks in Python are run by test_python_api.py.
    """
    known = (
        *NOT_RUN,
        *INSTALLED,
        "python -m cfmlc_jax.",
        "python -m scripts.",
        "python scripts/",
        "scripts/run.sh",
    )
    strange = []
    for path in TEXTS:
        if path.suffix == ".md":
            blocks = re.findall(r"^```(\w*)\n(.*?)^```$", path.read_text(), re.M | re.S)
            assert {language for language, _ in blocks} <= {"", "python", "bash", "yaml"}
            text = [line for language, block in blocks if not language for line in block.splitlines()]
            lines = [line for line in text if re.match(r"[a-z./]+ ", line)]
            strange += [line for line in lines if not line.startswith(known)]
    assert [line for line in strange if not re.match(r"photos/| ", line)] == []
