"""What watches over a run, by itself."""

import signal

import pytest

from cfmlc_jax.engine import hooks
from cfmlc_jax.errors import RunError

FINITE = -1


def test_a_bad_step_is_reported_when_the_next_is_on_its_way():
    watch = hooks.NonFiniteWatch(["loss", "gradient"])
    watch.add(1, FINITE)
    watch.add(2, 1)
    with pytest.raises(RunError, match="step 2: gradient is not finite"):
        watch.add(3, FINITE)


def test_a_flush_reports_every_bad_step():
    watch = hooks.NonFiniteWatch(["loss"])
    watch.add(1, FINITE)
    watch.flush()
    watch.add(2, 0)
    with pytest.raises(RunError, match="step 2: loss is not finite"):
        watch.flush()
    watch.flush()


def stops(patience, *epochs):
    """Epochs after which a run would stop, by (weights, average) of each."""
    stop = hooks.EarlyStop(patience, {})
    scores = [dict(zip(("weights", "average"), pair, strict=True)) for pair in epochs]
    return [epoch for epoch, each in enumerate(scores, 1) if stop.update(epoch, each)]


@pytest.mark.parametrize(
    ("epochs", "expected"),
    [
        (((5, 5), (4, 4), (3, 3)), [2, 3]),
        # The average predicts: equal to its best, the run continues, whatever the raw weights do.
        (((5, 5), (4, 5), (4, 4)), [3]),
        (((5, 5), (5, 4), (6, 4)), [2]),
        # One of the two sets still improves.
        (((5, 5), (6, 4), (7, 3)), []),
        (((5, 5), (4, 6), (3, 7)), []),
    ],
)
def test_a_run_stops_when_no_set_of_weights_improves(epochs, expected):
    assert stops(1, *epochs) == expected
    assert stops(None, *epochs) == []


def test_patience_counts_epochs_since_the_best():
    assert stops(2, (5, 5), (4, 4), (3, 3), (6, 6), (5, 5), (5, 5)) == [3, 6]


def test_the_best_is_kept_where_a_run_never_stops():
    stop = hooks.EarlyStop(None, {})
    for epoch, value in enumerate((1.0, 3.0, 2.0), 1):
        stop.update(epoch, {"weights": value})
    assert stop.best == {"weights": [2, 3.0]}


def test_values_are_means_of_their_steps():
    assert hooks.mean_values({"loss": 6.0, "steps": 4.0}) == {"loss": 1.5}


def test_a_request_after_the_last_call_of_a_stage_ends_the_next_stage():
    before = signal.getsignal(signal.SIGTERM)
    with hooks.Preemption() as preemption:
        preemption.raise_if_requested("nothing is done")
        signal.raise_signal(signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before  # between stages it ends a single process at once
    with (
        pytest.raises(hooks.Preempted, match="asked to end; one stage is done"),
        hooks.Preemption() as preemption,
    ):
        preemption.raise_if_requested("one stage is done")
    with hooks.Preemption() as preemption:
        assert not preemption.requested()
