"""The report of a task: its sections in order, and a few words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cfmlc_jax.report.markup import Markup
from cfmlc_jax.results.read import Run


@dataclass(frozen=True)
class Section:
    """A section of the page.

    anchor: id of the section.
    link: its name in the navigation.
    build: a function of a run and of strengths of effects (or None) -> the section; None if it is empty.
    """

    anchor: str
    link: str
    build: Callable[[Run, Sequence[float] | None], Markup | None]


@dataclass(frozen=True)
class Task:
    """The report of a task.

    kicker: a function of a run -> the line above the title.
    trained_as: a function of the configuration -> the method in words; "" if unknown.
    evaluated: sections that need an evaluation, in words; besides results, classes and images. None: no section does.
    sections: in order.
    """

    kicker: Callable[[Run], str]
    trained_as: Callable[[Mapping[str, Any]], str]
    evaluated: str | None
    sections: Sequence[Section]
