"""What generated tests share: how many cases they try, and damaged documents.

In the suite the cases are few and always the same; by a variable they are many and others each time:

    CASES=100 pytest tests/test_checkpoint_machine.py        # a hundred times as many, random
"""

import copy
import os

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from cfmlc_jax.errors import InputError

FACTOR = int(os.environ.get("CASES", "0"))


def register_profile() -> None:
    """Load the profile of all generated tests."""
    settings.register_profile(
        "generated",
        max_examples=100 * (FACTOR or 1),
        # The same cases in every run: a failure is a change of the code, never of luck.
        derandomize=not FACTOR,
        database=None,
        deadline=None,
        print_blob=bool(FACTOR),  # a failure prints what repeats it
        suppress_health_check=[HealthCheck.too_slow],
    )
    settings.load_profile("generated")


def cases(number: int, **options) -> settings:
    """Settings of a test with so many cases in the suite."""
    return settings(max_examples=number * (FACTOR or 1), **options)


ODD = (
    "",
    " ",
    "..",
    "../a.jpg",
    "/etc/passwd",
    "C:\\a.jpg",
    "a\nb",
    "\x00",
    "\ud800",
    "e\u0301",
    "\u2028",
    "nan",
    "1e999",
)
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([*ODD, 10**400, -1, 1e300, 2**63]),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


def places(document):
    """Every (container, key) of a JSON document."""
    inner = document.items() if isinstance(document, dict) else enumerate(document)
    for key, value in list(inner):
        yield document, key
        if isinstance(value, dict | list):
            yield from places(value)


@st.composite
def mutated(draw, document):
    """A document with up to three of its values replaced, deleted or repeated."""
    whole = [copy.deepcopy(document)]
    for _ in range(draw(st.integers(1, 3))):
        container, key = draw(st.sampled_from(list(places(whole))))
        action = draw(st.sampled_from(("replace", "delete", "repeat")))
        if action == "replace" or container is whole:
            container[key] = draw(values)
        elif action == "delete":
            del container[key]
        elif isinstance(container, list):
            container.append(copy.deepcopy(container[key]))
    return whole[0]


def spoiled(text):
    """Text, or its bytes, with a stretch replaced by anything."""

    def spoil(start, length, junk):
        data = text.encode()
        return data[:start] + junk + data[start + length :]

    junk = st.one_of(
        st.binary(max_size=6),
        st.text(max_size=6).map(str.encode),
        st.sampled_from(
            [
                b";",
                b"\t",
                b'"',
                b",",
                b"\n",
                b"<",
                b"&x;",
                b"..",
                b"/",
                b"\\",
                b"\r",
                b"\x0b",
                b"\xef\xbb\xbf",
                b"9" * 12,
            ]
        ),
    )
    return st.builds(spoil, st.integers(0, len(text)), st.integers(0, 12), junk) | st.binary(max_size=40)


def value_or_line(function, *arguments, errors=InputError):
    """The value of a function, or None after an error of one line that can be printed."""
    try:
        return function(*arguments)
    except errors as error:
        message = str(error)
    assert len(message.splitlines()) == 1, message
    message.encode(errors="surrogateescape")
    return None
