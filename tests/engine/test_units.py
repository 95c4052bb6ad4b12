"""Sizes of memory and counts in words, and back."""

import pytest

from cfmlc_jax.engine import units
from cfmlc_jax.errors import InputError


@pytest.mark.parametrize(
    ("written", "size"), [("24G", 24 * 2**30), ("15.75GiB", 15.75 * 2**30), ("512 MB", 2**29), ("1t", 2**40)]
)
def test_sizes_of_memory(written, size):
    assert units.parsed_bytes(written, "--memory") == size
    with pytest.raises(InputError):
        units.parsed_bytes(f"-{written}", "--memory")


@pytest.mark.parametrize("written", ["9" * 400, "one\nG", "", "0", "1e9"])
def test_what_is_no_size_is_told_in_one_line(written):
    with pytest.raises(InputError, match=r"--memory=.* is not a size of memory") as error:
        units.parsed_bytes(written, "--memory")
    assert "\n" not in str(error.value)


def test_numbers_with_units():
    assert [units.shown_bytes(n) for n in (0, 1023, 14.2 * 2**30, 3.9 * 2**40)] == [
        "0 B",
        "1023 B",
        "14.2 GiB",
        "3.90 TiB",
    ]
    assert [units.shown_count(n) for n in (12, 7.8e12, 6.2e18)] == ["12", "7.8 T", "6.2e+03 P"]
