"""Checks your own images before a run: files, labels, duplicates, leaks between splits; the findings as a page."""
