"""The report of a run: one HTML page, made from the files in the workdir."""
