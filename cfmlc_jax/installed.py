"""Folders that come with the package: a checkout has them beside it, a wheel inside it."""

from pathlib import Path

import cfmlc_jax

DOCUMENTS, SCRIPTS = "docs", "scripts"


def folder(name: str) -> Path:
    """The path of a folder that pyproject.toml puts into the wheel, such as "configs"."""
    package = Path(cfmlc_jax.__file__).parent
    inside = package / name
    return inside if inside.is_dir() else package.parent / name


def document(name: str) -> str:
    """The path of a document, such as "data.md", for messages."""
    return str(folder(DOCUMENTS) / name)
