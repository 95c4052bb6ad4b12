"""The results of an evaluation: typed, written to files and read from them."""
