"""Verdicts on agreement: the difference of two sides, compared with the rounding of the reference itself."""

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from cfmlc_jax.errors import InputError
from scripts.parity.observed import Step, group_of

# Another implementation may differ by this many times the rounding.
ALLOWANCE = 10
# One rounding to float32, the type of stored parameters; smaller differences are allowed.
LEAST_ROUNDING = 2.0**-23
# Rounding of gradients in float64, because the checkout computes Query2Label's positions in float32.
FAINT = 1e-5
# The same of changes of Query2Label's parameters: measured, up to 4e-7. Without weight decay they differ by 2e-5 (docs/parity.md).
FAINT_CHANGE = 1e-6
# Above this relative difference no agreement is claimed, however large the rounding is.
GREATEST_DIFFERENCE = 0.05
# Parameters whose gradient is rounding by more than this share are not compared.
QUIET = 0.01


class Row(NamedTuple):
    """One row of the table.

    stage: the name of what is compared.
    shape: its shape, in words.
    difference: the largest absolute difference between our numbers and PyTorch's.
    relative: norm of the difference, divided by the norm of PyTorch's numbers.
    rounding: the same for PyTorch's float32 and float64 numbers.
    tolerance: the largest allowed `relative`.
    verdict: "agrees", "differs", "rounding" (inconclusive), or "–" if there is none.
    """

    stage: str
    shape: str
    difference: float
    relative: float
    rounding: float
    tolerance: float
    verdict: str


def relative(x: np.ndarray, y: np.ndarray) -> float:
    """‖x − y‖ / ‖y‖ of float64 vectors; 0 for equal ones."""
    distance = np.linalg.norm(x - y)
    return float(distance / np.linalg.norm(y)) if distance else 0.0


def verdict(difference: float, tolerance: float) -> str:
    """ "agrees", "differs" or "rounding" (inconclusive), from a relative difference and its tolerance."""
    if not difference <= tolerance:  # also True for NaN
        return "differs"
    return "agrees" if difference <= GREATEST_DIFFERENCE else "rounding"


def compare(stage: str, shape: str, ours, theirs, exact, *, known: float = 0.0) -> Row:
    """The row of one stage.

    Args:
        stage: its name.
        shape: its shape, in words.
        ours: our numbers.
        theirs: PyTorch's numbers, as many.
        exact: PyTorch's numbers in float64. Their difference from `theirs` is the rounding.
        known: a lower bound of the rounding, for numbers whose measured rounding may be small by chance.
    """
    ours, theirs, exact = (np.asarray(x, np.float64).ravel() for x in (ours, theirs, exact))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        difference = float(np.abs(ours - theirs).max())
        distance, rounding = relative(ours, theirs), relative(exact, theirs)
    tolerance = ALLOWANCE * max(rounding, known, LEAST_ROUNDING)
    return Row(stage, shape, difference, distance, rounding, tolerance, verdict(distance, tolerance))


def stage_rows(ours: Mapping, theirs: Mapping, exact: Mapping) -> list[Row]:
    """One row for each stage of evaluation. The rounding of a stage is at least that of the stages before it.

    Raises:
        InputError: the sides have different stages or shapes.
    """
    rows: list[Row] = []
    for stage, numbers in theirs.items():
        if stage not in ours or ours[stage].shape != numbers.shape:
            shape_of_ours = list(ours[stage].shape) if stage in ours else "nothing"
            raise InputError(
                f"{stage}: the reference has {list(numbers.shape)}, ours {shape_of_ours}; is it another model's checkout?"
            )
        known = max((row.rounding for row in rows), default=0.0)
        shape = str(list(numbers.shape))
        rows.append(compare(stage, shape, ours[stage], numbers, exact[stage], known=known))
    return rows


def step_rows(
    ours: Sequence[Step], theirs: Sequence[Step], exact: Sequence[Step], *, known: float, known_change: float
) -> Iterator[Row]:
    """Rows for every update: settings, gradient, loss and changes.

    Gradients of the first update and changes of the last have one row for each group of parameters.

    Args:
        ours: our steps.
        theirs: PyTorch's steps.
        exact: PyTorch's steps in float64.
        known: rounding of gradients, `kinks` in float32 and `FAINT` in float64.
        known_change: rounding of changes of parameters: in float64 it is so small that changes show the weight decay.
    """
    comparable: dict[tuple[str, ...], np.ndarray] = {}
    for i, sides in enumerate(zip(ours, theirs, exact)):
        name = f"step {i + 1}: "
        reference = sides[1]
        # As ratios, because settings have very different sizes.
        settings = (side.settings / reference.settings for side in sides)
        yield compare(f"{name}settings", f"{len(reference.settings)} ratios", *settings)
        trained = {path: np.isfinite(values) for path, values in reference.gradient.items()}
        gradients = [side.gradient for side in sides]
        by_group = list(_grouped(f"{name}gradient of ", gradients, trained, known=known))
        yield from (by_group if i == 0 else _together(f"{name}gradient", gradients, trained, known=known))
        head = max(row.rounding for row in by_group if " head" in row.stage)
        yield compare(f"{name}loss", "1 number", *(side.loss for side in sides), known=head)
        comparable = _above_rounding(comparable, reference.gradient, sides[2].gradient, known)
        yield from _change_rows(name, sides, comparable, known_change, by_group=i == len(theirs) - 1)


def kinks(rows: Sequence[Row], last_map: np.ndarray) -> float:
    """Relative rounding of gradients caused by ReLUs that are active on one side and inactive on the other.

    One such ReLU among the n of the smallest map changes gradients by about 1/√n, and with a forward
    rounding of r about one ReLU in 1/r differs. They are rare, so the measured rounding may not include them.
    """
    return max(max(row.rounding for row in rows) ** 0.5, last_map.size**-0.5)


def _change_rows(name, sides, comparable, known, *, by_group):
    for kind in ("change", "average"):
        changes = [getattr(side, kind) for side in sides]
        what = f"{name}change of {'averaged ' if kind == 'average' else ''}"
        statistics = {p: np.ones(x.shape, bool) for p, x in changes[1].items() if p not in comparable}
        yield from _together(f"{what}parameters", changes, comparable, known=known)
        yield from _together(f"{what}statistics", changes, statistics)
        if by_group and kind == "change":
            yield from _grouped(what, changes, comparable, known=known)


def _above_rounding(before, gradient, exact, known):
    """Masks, by path, of the parameters whose gradients were above their rounding in all steps.

    Only these are compared, because Adam turns a gradient of any size into a full step. The known rounding is
    spread evenly over an array.
    """
    masks = {}
    for path, values in gradient.items():
        rounding = np.abs(values - exact[path]) / QUIET
        spread = ALLOWANCE * known * np.sqrt(np.mean(np.square(values)))
        lost = np.abs(values) < np.maximum(rounding, spread)
        masks[path] = ~lost & before.get(path, True)
    return masks


def _grouped(name, sides, masks, *, known=0.0) -> Iterator[Row]:
    for group in dict.fromkeys(map(group_of, masks)):
        members = {path: mask for path, mask in masks.items() if group_of(path) == group}
        yield from _together(name + group, sides, members, known=known)


def _together(name, sides, masks, *, known=0.0) -> Iterator[Row]:
    """One row for the masked values of all arrays; no row if the masks are empty."""
    if any(mask.any() for mask in masks.values()):
        vectors = [np.concatenate([side[path][mask] for path, mask in masks.items()]) for side in sides]
        yield compare(name, f"{len(vectors[0])} numbers", *vectors, known=known)
