"""The sections of the page, in its order. A section is None if it has nothing to show."""
