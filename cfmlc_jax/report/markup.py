"""HTML and SVG in which text cannot become markup.

A template language would be a dependency more, and half of the page is figures that are computed
element by element; here everything that is not `Markup` already is escaped.
"""

import html

from cfmlc_jax.errors import printable

_VOID = {"br", "meta", "img", "hr", "input", "link", "wbr"}


class Markup(str):
    """Text that is markup already."""

    __slots__ = ()


Child = str | float | None


def element(tag: str, *children: Child, **attributes: object) -> Markup:
    """An element, its children escaped unless they are `Markup`; None leaves a child or attribute out.

    An attribute's name has "-" for "_" inside, and loses one at its end (`class_`, `for_`). True
    stands for an attribute without a value. Floats become short numbers.
    """
    opening = f"<{tag}{''.join(_attribute(name, value) for name, value in attributes.items())}>"
    if tag in _VOID:
        return Markup(opening)
    return Markup(f"{opening}{join(*children)}</{tag}>")


def join(*children: Child) -> Markup:
    """The children one after the other, escaped as in `element`."""
    return Markup("".join(_text(child) for child in children if child is not None))


def number(value: float) -> str:
    """A coordinate as short as it needs to be: two decimals at most."""
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def _text(child):
    if isinstance(child, Markup):
        return child
    return html.escape(printable(child) if isinstance(child, str) else number(child), quote=False)


def _attribute(name, value):
    if value is None or value is False:
        return ""
    name = name.rstrip("_").replace("_", "-")
    if value is True:
        return f" {name}"
    text = value if isinstance(value, str) else number(value)
    return f' {name}="{html.escape(printable(text))}"'
