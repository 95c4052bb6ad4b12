"""Predicting many pictures: what the script writes, and that all of it is predicted or reported."""

import sys

import pytest

from cfmlc_jax.data.views.decode import decode
from cfmlc_jax.errors import InputError, RunError
from scripts import load


def test_so_many_pictures_are_broken(tmp_path):
    load.write_pictures(tmp_path, 120, 12, 40)
    files = sorted(tmp_path.rglob("*.*"))
    assert [path.parent.name for path in files] == ["0000"] * 100 + ["0001"] * 20
    assert {path.suffix for path in files} == {f".{suffix}" for suffix in load.KINDS.values()}
    refused = 0
    for path in files:
        try:
            assert decode(path.read_bytes(), path.name).width == 40
        except InputError:
            refused += 1
    assert refused == 12


COMMAND = """#!/bin/sh
for flag in "$@"; do case $flag in --output=*) out=${flag#--output=};; esac; done
printf '{"file": "a"}\\n{"file": "b"}\\n' > "$out"
echo "skipped: c.jpg: broken" >&2
echo "2 predicted, 1 skipped, 0.1 s" >&2
exit 1
"""


def test_what_is_neither_predicted_nor_reported_is_an_error(tmp_path, monkeypatch):
    command = tmp_path / "python"
    command.write_text(COMMAND)
    command.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(command))
    measured = load.predict(tmp_path, tmp_path, tmp_path / "out", 8, pictures=3, broken=1)
    assert measured[:2] == (3, 1)
    assert measured.peak > 0
    for pictures, broken in ((4, 1), (3, 0), (3, 2)):
        with pytest.raises(RunError, match="predict ended with 1, 1 reports and '2 predicted, 1 skipped"):
            load.predict(tmp_path, tmp_path, tmp_path / "out", 8, pictures=pictures, broken=broken)


def test_wrong_arguments_are_one_line(capsys):
    for arguments, words in (
        (["--pictures=1", "--broken=2"], "give fewer"),
        (["--side=10000"], "are refused; give less"),
    ):
        assert load.main(arguments) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert words in line
