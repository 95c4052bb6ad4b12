"""The report as one self-contained HTML page: drawn here, without scripts, fonts or network."""
