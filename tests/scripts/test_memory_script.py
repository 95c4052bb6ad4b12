"""The table of memory and time: its flags, one compiled step, its form."""

import pytest

from cfmlc_jax.errors import InputError
from scripts import memory


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--remat=all"], "--remat has all; give some of none,blocks,everything"),
        (["--micro_batches=1,x"], "must be whole numbers"),
        (["--micro_batches=2,3"], "numbers that do not divide its largest, 3"),
        (["--batch=12"], "--batch 12 is not divisible by 4 micro-batches on 8 devices; try 32"),
    ],
)
def test_wrong_flags_are_refused(flags, message):
    with pytest.raises(InputError, match=message):
        memory.parse(flags)


def test_a_step_is_planned_without_being_run(capsys):
    flags = ["--model=resnet_small", "--size=32", "--batch=16", "--steps=0", "--micro_batches=2"]
    assert memory.main([*flags, "--remat=blocks"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("resnet_small, 16 images of 5 views of 32 px, float32")
    assert lines[-1].startswith("| blocks | 2 | ")
    assert float(lines[-1].split("|")[3]) > 0
    assert memory.main(["--batch=12"]) == 1
