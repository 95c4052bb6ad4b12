"""Sizes of memory and counts in words, and back."""

import re

from cfmlc_jax.errors import InputError

_POWERS = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}
_SIZE = re.compile(r"(\d{1,20}(?:\.\d{1,20})?)\s*([KMGT]?)(?:i?B)?", re.IGNORECASE)


def parsed_bytes(text: str, flag: str) -> int:
    """Bytes of a text such as "24G", "15.75GiB" or "80 GB"; K, M, G and T are powers of 1024.

    Raises:
        InputError: another text; the message names the flag.
    """
    parts = _SIZE.fullmatch(text.strip())
    number = scaled(parts[1], parts[2]) if parts else 0
    if not 1 <= number < 2**60:
        raise InputError(f"{flag}={text} is not a size of memory; give 24G, for example")
    return number


def scaled(number: str, prefix: str) -> int:
    """Bytes of a number with the prefix K, M, G or T, of powers of 1024, or none."""
    return int(float(number) * 1024 ** _POWERS[prefix.upper()])


def shown_bytes(number: float) -> str:
    """Bytes with a unit: "14.2 GiB"."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.3g} {unit}" if unit != "B" else f"{number:.0f} B"
        number /= 1024
    return f"{number:,.2f} TiB"


def shown_count(number: float) -> str:
    """A number with an SI prefix: "7.8 T"."""
    for prefix in ("", "k", "M", "G", "T"):
        if number < 1000:
            return f"{number:.3g} {prefix}".strip()
        number /= 1000
    return f"{number:,.3g} P"
