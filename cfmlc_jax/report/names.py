"""Names of files and classes as people read them."""


def printable(name: str) -> str:
    """The name on one line: line breaks, control characters and undecodable bytes as escapes."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in name)
