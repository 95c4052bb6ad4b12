"""Predicting many pictures: what the script writes, and that all of it is predicted or reported."""

import sys
from pathlib import Path

import pytest

from cfmlc_jax.data.views.decode import decode
from cfmlc_jax.errors import InputError, RunError
from scripts import load


def test_so_many_pictures_are_broken(tmp_path):
    good, broken = load.write_pictures(tmp_path, 120, 12, 40)
    files = sorted(tmp_path.rglob("*.*"))
    assert [path.parent.name for path in files] == ["0000"] * 100 + ["0001"] * 20
    assert {path.suffix for path in files} == {f".{suffix}" for suffix in load.KINDS.values()}
    assert sorted(good + broken) == [str(path) for path in files]
    assert len(broken) == 12
    for path in files:
        if str(path) in broken:
            with pytest.raises(InputError):
                decode(path.read_bytes(), path.name)
        else:
            assert decode(path.read_bytes(), path.name).width == 40


COMMAND = """#!/bin/sh
for flag in "$@"; do case $flag in --output=*) out=${flag#--output=};; esac; done
printf '{"file": "a"}\\n{"file": "b"}\\n' > "$out"
echo "skipped: c.jpg: broken" >&2
echo "2 predicted, 1 skipped, 0.1 s" >&2
exit 1
"""


@pytest.fixture
def predict(tmp_path, monkeypatch):
    """A run of the command, which predicts a and b, and reports c.jpg, whatever there is."""
    command = tmp_path / "python"
    command.write_text(COMMAND)
    command.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(command))

    def run(*, good, broken):
        return load.predict(tmp_path, tmp_path, tmp_path / "out", 8, good, broken)

    return run


def test_what_is_neither_predicted_nor_reported_is_an_error(predict):
    measured = predict(good=["b", "a"], broken=["c.jpg"])
    assert measured[:2] == (3, 1)
    assert measured.peak > 0
    for good, broken in ((["a", "b", "d"], ["c.jpg"]), (["a", "b"], []), (["a"], ["c.jpg", "d"])):
        with pytest.raises(RunError, match="predict ended with 1, 1 reports and '2 predicted, 1 skipped"):
            predict(good=good, broken=broken)


@pytest.mark.parametrize(
    ("good", "broken", "words"),
    [
        (["a", "c.jpg"], ["b"], "b was predicted 1 times, wanted 0"),
        (["a", "b"], ["d.jpg"], r"c\.jpg was reported 1 times, wanted 0"),
    ],
)
def test_a_report_of_other_pictures_is_an_error(predict, good, broken, words):
    with pytest.raises(RunError, match=words):
        predict(good=good, broken=broken)


def test_a_picture_that_is_predicted_twice_is_an_error(predict):
    Path(sys.executable).write_text(COMMAND.replace('"b"', '"a"'))
    with pytest.raises(RunError, match="a was predicted 2 times, wanted 1"):
        predict(good=["a", "b"], broken=["c.jpg"])


def test_wrong_arguments_are_one_line(capsys):
    for arguments, words in (
        (["--pictures=1", "--broken=2"], "give fewer"),
        (["--side=10000"], "are refused; give less"),
    ):
        assert load.main(arguments) == 1
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("error: ")
        assert words in line
