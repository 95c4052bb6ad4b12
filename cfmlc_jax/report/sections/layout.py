"""The parts that all sections are built from."""

from cfmlc_jax.report.markup import Child, Markup, element
from cfmlc_jax.results.read import Run


def section(anchor: str, title: str, *content: Child, lede: Child = None) -> Markup:
    """A section of the page: its title, an introduction, and its content."""
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
    """The content of a section for one split, under its name; the switch between splits shows or hides it."""
    names = [split.name for split in run.splits]
    switched = f" split split-{names.index(name)}" if name in names else ""
    return element("div", element("h3", name), *content, class_=f"block{switched}")


def panels(*figures: Child, wide: bool = False) -> Markup:
    """Figures side by side, as many as fit; of wide figures at most two."""
    return element("div", *figures, class_="panels wide" if wide else "panels")


def fold(summary: str, *content: Child, opened: bool = False) -> Markup:
    """Content that the reader can open and close."""
    return element("details", element("summary", summary), *content, open=opened)


def absent(reason: str) -> Markup:
    """A sentence that says why something is not shown."""
    return element("p", reason, class_="absent")
