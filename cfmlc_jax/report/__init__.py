"""The report of a run: one page, out of its files alone."""
