"""Traces of training steps."""

import gzip
import json
import time

import jax
import pytest
import toys

from cfmlc_jax.engine import profile
from cfmlc_jax.engine.hooks import Preempted
from cfmlc_jax.engine.instruments import Instruments
from cfmlc_jax.engine.profile import Steps
from cfmlc_jax.errors import InputError

STEPS = toys.EPOCHS * toys.PER_EPOCH


def test_the_steps_of_a_flag():
    assert profile.parsed("100:110") == Steps(100, 110)
    assert str(profile.parsed("0:10")) == "steps 1 to 10"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("100", "--profile=100 is not FIRST:LAST; give two steps, as in 100:110"),
        ("a:b", "is not FIRST:LAST"),
        ("-1:3", "is not FIRST:LAST"),
        ("", "is not FIRST:LAST"),
        ("110:100", "has no step in it; the second number must be larger"),
        ("5:5", "has no step in it"),
        ("0:100000", "are 100000 steps, of which no viewer shows the trace; give at most 1000"),
    ],
)
def test_steps_that_cannot_be_traced(text, words):
    with pytest.raises(InputError, match=words):
        profile.parsed(text)


def fit(workdir, first, last, **options):
    return toys.fitted(toys.Line(), workdir, instruments=Instruments(profile=Steps(first, last)), **options)


def traced(workdir):
    """The numbers of the steps in a workdir's traces."""
    numbers = []
    for path in (workdir / "profile").rglob("*.trace.json.gz"):
        assert list(path.parent.glob("*.xplane.pb"))  # what TensorBoard's page reads
        with gzip.open(path) as file:
            events = json.load(file)["traceEvents"]
        numbers += [int(event["args"]["step_num"]) for event in events if event.get("name") == profile.STEP]
    return sorted(numbers)


def test_a_trace_of_ten_steps_that_loads(tmp_path, capsys):
    fit(tmp_path / "run", 1, 11)
    assert traced(tmp_path / "run") == list(range(2, 12))
    text = capsys.readouterr().err
    assert "--profile: steps 2 to 11 will be traced\n" in text
    assert (
        f"a trace of steps 2 to 11 is in {tmp_path / 'run' / 'profile'}; open it by tensorboard --logdir="
        in text
    )


def test_a_resumed_run_traces_the_rest_and_a_finished_part_not_again(tmp_path, capsys):
    with pytest.raises(Preempted):
        fit(tmp_path / "run", 2, 9, asked=7)
    assert traced(tmp_path / "run") == [3, 4, 5, 6]  # the run ended
    time.sleep(1.01 - time.time() % 1)  # the profiler names traces by the second
    fit(tmp_path / "run", 2, 9)
    assert traced(tmp_path / "run") == [3, 4, 5, 6, 7, 8, 9]
    assert "steps 7 to 9 will be traced; the run resumes at step 6" in capsys.readouterr().err


def test_steps_that_were_done_before(tmp_path, capsys):
    with pytest.raises(Preempted):
        toys.fitted(toys.Line(), tmp_path / "run", asked=7)
    fit(tmp_path / "run", 2, 6)
    assert "nothing to trace, steps 3 to 6 were done before" in capsys.readouterr().err
    assert not (tmp_path / "run" / "profile").exists()


def test_steps_after_the_end(tmp_path, capsys):
    with pytest.raises(InputError, match=f"asks for steps 501 to 510, but the run has {STEPS}; give earlier"):
        fit(tmp_path / "run", 500, 510)
    fit(tmp_path / "run", STEPS - 1, 500)
    assert f"steps 12 to 12 will be traced; the run ends at step {STEPS}" in capsys.readouterr().err
    assert traced(tmp_path / "run") == [STEPS]


def test_a_trace_that_cannot_be_written_ends_no_run(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "profile").write_text("a file")
    assert fit(tmp_path / "run", 2, 4).finished
    assert "no trace could be written (" in capsys.readouterr().err


def test_another_trace_is_open(tmp_path, capsys):
    # Without Python's calls: while these are traced, a thread that begins can fail.
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0
    jax.profiler.start_trace(tmp_path / "other", profiler_options=options)
    try:
        assert fit(tmp_path / "run", 2, 4).finished
    finally:
        jax.profiler.stop_trace()
    assert "no trace could be written (" in capsys.readouterr().err
