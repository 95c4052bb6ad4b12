"""The search for what fits: few measurements, and never a wrong answer."""

import pytest

from cfmlc_jax.planning.fitting import SLACK, Candidate, Point, largest


def search(need, sizes, limit):
    """The images of the largest that fits, and the images that were measured."""
    measured = []

    def recorded(candidate):
        measured.append(candidate.images)
        return need(candidate.images)

    candidates = [Candidate({"train.batch_size": size}, size) for size in sizes]
    fit = largest(candidates, recorded, limit, Point(sizes[-1], need(sizes[-1])))
    assert len(set(measured)) == len(measured)
    if fit is None:
        return None, measured
    candidate, needed = fit
    assert needed == need(candidate.images)
    assert candidate.fields == {"train.batch_size": candidate.images}
    return candidate.images, measured


def test_a_line_needs_two_measurements():
    assert search(lambda images: 1000 + 50 * images, range(1, 129), 3000) == (40, [1, 40])


def test_nothing_fits():
    assert search(lambda images: 1000 + images, (8, 16), 900) == (None, [8])


def test_without_a_measurement_the_largest_is_measured():
    candidates = [Candidate({}, size) for size in (1, 2, 4, 8)]
    need = lambda candidate: 10 * candidate.images  # noqa: E731
    assert largest(candidates, need, 100) == (candidates[3], 80)
    assert largest(candidates, need, 50) == (candidates[2], 40)
    assert largest(candidates[:1], need, 50) == (candidates[0], 10)
    assert largest(candidates[:1], need, 5) is None


def test_one_candidate_fits():
    assert search(lambda images: images, (8, 16), 9) == (8, [8])


@pytest.mark.parametrize(
    ("power", "limit"),
    [(0.5, 10), (0.5, 30), (0.7, 100), *((p, n) for p in (1, 1.5, 2) for n in (10, 100, 1000))],
)
def test_needs_that_are_no_line(power, limit):
    need = lambda images: 5 + images**power  # noqa: E731
    sizes = range(1, 1025)
    best = max(size for size in sizes if need(size) <= limit)
    answer, measured = search(need, sizes, limit)
    assert answer <= best
    assert answer == best or need(answer) >= (1 - SLACK) * limit
    assert len(measured) <= 1 + 2 + 10  # the smallest, two along lines, and halving of 1024 candidates


def test_a_need_with_steps():
    # Compilers change their plan at some sizes.
    need = lambda images: 100 * images + (5000 if images >= 20 else 0)  # noqa: E731
    assert search(need, range(1, 129), 6000)[0] == 19
