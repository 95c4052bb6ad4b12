"""From what a user names to a file on this machine: a name of the table, a repository of the Hub, or a path."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from cfmlc_jax.errors import InputError
from cfmlc_jax.weights import cache, hub
from cfmlc_jax.weights.download import Place, download
from cfmlc_jax.weights.table import LIST, PUBLISHERS, TABLE, Public, nearest, public

HUB = "hf"
_NAME = re.compile(r"(?P<publisher>[A-Za-z_]\w*):(?P<rest>[^/\\].*)")
_REPOSITORY = re.compile(r"(?P<name>[^/@]+/[^/@]+)(?:@(?P<revision>[^/]+))?(?:/(?P<file>.+))?")


class Named(NamedTuple):
    """Weights that a name stands for: an entry of the table, a repository of the Hub, or both."""

    text: str
    entry: Public | None
    repository: hub.Repository | None

    def present(self) -> Path | None:
        """The file in the cache; None if it is not there."""
        if self.repository is not None:
            return self.repository.present()
        path = self.path
        return path if path.is_file() else None

    @property
    def path(self) -> Path:
        """Of the file in the cache, whether or not it is there; of a repository its folder."""
        if self.repository is not None:
            return self.repository.folder
        assert self.entry is not None
        return cache.folder() / self.entry.file


def named(text: str) -> Named | None:
    """What a text names; None if it is the path of a file or folder.

    Raises:
        InputError: the text has the form of a name, but nothing has this name; or it is no path either, and a
            known name is similar.
    """
    match = _NAME.fullmatch(text)
    if match is None or (match["publisher"] not in (*PUBLISHERS, HUB) and os.path.exists(text)):
        return None
    if match["publisher"] == HUB:
        repository = _REPOSITORY.fullmatch(match["rest"])
        # The parts are folders of the cache, which a name must not leave.
        if repository is None or {".", ".."} & set(re.split("[/@]", match["rest"])):
            raise InputError(
                f"{text!r} is not a repository; write hf:owner/name, hf:owner/name@revision or hf:owner/name/FILE"
            )
        entry = next((entry for entry in TABLE.values() if entry.hub == repository["name"]), None)
        return Named(
            text, entry, hub.Repository(*(repository[part] or "" for part in ("name", "revision", "file")))
        )
    if match["publisher"] not in PUBLISHERS and not nearest(text):
        raise InputError(
            f"{text!r} begins with {match['publisher']!r}, which is not one of {', '.join(PUBLISHERS)}, {HUB}; {LIST} names all"
        )
    entry = public(text)
    return Named(text, entry, hub.Repository(entry.hub) if entry.hub else None)


def fetch(weights: Named, say: Callable[[str], None], *, silent: bool = False) -> Path:
    """The path of the file of named weights, downloaded unless it is in the cache.

    Its digest is compared with the published one each time, a second for a gigabyte.

    Args:
        weights: by `named`.
        say: prints a line for the user.
        silent: show no progress.

    Raises:
        InputError: the file cannot be had (the message says how to bring it), or it has a wrong digest.
        RunError: the network is not there, or the transfer broke off.
        WriteError: the cache cannot be written.
    """
    if weights.repository is not None:
        return hub.fetch(weights.repository, say, silent=silent)
    entry, path = weights.entry, weights.path
    assert entry is not None
    if not path.is_file():
        if not entry.url:
            raise InputError(
                f"{entry.name} has no address that a program can read: download it in a browser from {entry.page}, "
                f"and put it at {path}"
            )
        cache.prepare(path)
        download(Place(entry.url, path, entry.name), say, silent=silent)
        cache.require_digest(path, entry.sha256)
        if len(entry.sha256) < 64:
            cache.record(path, cache.sha256(path))
        return path
    cache.require_digest(path, entry.sha256)
    cache.require_digest(path, cache.recorded(path))
    return path


def file_in(folder: Path) -> Path:
    """The file of weights in a folder as the Hub has it; the path itself if it is no such folder, or this package's own.

    The file in a folder of this package's own stands for that folder.
    """
    if folder.is_file() and folder.name in hub.WEIGHTS and _is_own(folder.parent):
        return folder.parent
    file = next((folder / name for name in hub.WEIGHTS if (folder / name).is_file()), folder)
    return folder if _is_own(folder) else file


def _is_own(folder):
    """Whether a folder's config.json is a checkpoint's meta: then `checkpoint` reads the folder."""
    try:
        config = json.loads((folder / hub.CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(config, dict) and {"config", "class_names"} <= config.keys()
