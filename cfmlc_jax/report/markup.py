"""HTML and SVG elements. All text is escaped unless it is `Markup`.

There is no template language: it would be one more dependency, and half of the page is figures that are
computed element by element.
"""

import html

from cfmlc_jax.errors import printable

_VOID = {"br", "meta", "img", "hr", "input", "link", "wbr"}


class Markup(str):
    """Text that is already HTML, and is not escaped."""

    __slots__ = ()


Child = str | float | None


def element(tag: str, *children: Child, **attributes: object) -> Markup:
    """An HTML element. Children are escaped unless they are `Markup`; None leaves a child or attribute out.

    In the names of attributes, a final "_" is removed (`class_`, `for_`) and any other "_" becomes "-". True gives
    an attribute without a value. Floats are shortened.
    """
    opening = f"<{tag}{''.join(_attribute(name, value) for name, value in attributes.items())}>"
    if tag in _VOID:
        return Markup(opening)
    return Markup(f"{opening}{join(*children)}</{tag}>")


def join(*children: Child) -> Markup:
    """The children in sequence, escaped as in `element`."""
    return Markup("".join(_text(child) for child in children if child is not None))


def number(value: float) -> str:
    """A coordinate as text with at most two decimals."""
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
