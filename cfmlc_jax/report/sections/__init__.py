"""The parts of the page, in the order in which it shows them; each is None where it has nothing to say."""
