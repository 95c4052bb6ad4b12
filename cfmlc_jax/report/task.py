"""What a task's report is made of: its sections in their order."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cfmlc_jax.report.markup import Markup
from cfmlc_jax.results.read import Run


@dataclass(frozen=True)
class Section:
    """A section of the page.

    anchor: its address on the page.
    link: its name in the navigation.
    build: the section of a run, given strengths of effects or None; None where there is nothing to show.
    """

    anchor: str
    link: str
    build: Callable[[Run, Sequence[float] | None], Markup | None]


@dataclass(frozen=True)
class Task:
    """How a task is reported.

    kicker: the line above the title.
    trained_as: what was trained, given the configuration; "" where it does not say.
    evaluated: what an evaluation adds to results, classes and images, in words.
    sections: in their order.
    """

    kicker: str
    trained_as: Callable[[Mapping[str, Any]], str]
    evaluated: str
    sections: Sequence[Section]
