"""How much a classifier relies on context where the truth is not known: measures on a split, and objects removed from photos."""
