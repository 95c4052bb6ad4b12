"""What sections are made of."""

from cfmlc_jax.report.markup import Child, Markup, element
from cfmlc_jax.results.read import Run


def section(anchor: str, title: str, *content: Child, lede: Child = None) -> Markup:
    """A part of the page with its heading and, under it, a sentence that says how to read it."""
    head = element("h2", title, id=f"{anchor}-title")
    return element(
        "section",
        head,
        None if lede is None else element("p", lede, class_="lede"),
        *content,
        id=anchor,
        aria_labelledby=f"{anchor}-title",
    )


def split_block(run: Run, name: str, *content: Child) -> Markup:
    """What a section has of one split, under its name; the page's switch of splits shows and hides it."""
    names = [split.name for split in run.splits]
    switched = f" split split-{names.index(name)}" if name in names else ""
    return element("div", element("h3", name), *content, class_=f"block{switched}")


def panels(*figures: Child, wide: bool = False) -> Markup:
    """Figures side by side as the width allows; wide ones two at most."""
    return element("div", *figures, class_="panels wide" if wide else "panels")


def fold(summary: str, *content: Child, opened: bool = False) -> Markup:
    """Content that opens on demand."""
    return element("details", element("summary", summary), *content, open=opened)


def absent(reason: str) -> Markup:
    """A sentence about what cannot be shown, and why."""
    return element("p", reason, class_="absent")
