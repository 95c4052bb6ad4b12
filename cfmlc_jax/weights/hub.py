"""Weights from the Hugging Face Hub, by the optional package huggingface_hub: login, mirrors and broken transfers are its own.

A repository's files lie in the cache under their own names, so that a person can also put them there.
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from cfmlc_jax.errors import InputError, RunError, WriteError
from cfmlc_jax.weights import cache

CONFIG = "config.json"
# The first that exists is read.
WEIGHTS = ("model.safetensors", "pytorch_model.bin")
ENDPOINT = "HF_ENDPOINT"
_DEFAULT_ENDPOINT = "https://huggingface.co"


class Repository(NamedTuple):
    """A repository of models on the Hub.

    name: "owner/name".
    revision: branch, tag or commit.
    file: of the weights; empty: the first of `WEIGHTS` that is there.
    """

    name: str
    revision: str = ""
    file: str = ""

    @property
    def url(self) -> str:
        """Of its page."""
        return f"{endpoint()}/{self.name}"

    @property
    def folder(self) -> Path:
        """Of its files in the cache."""
        return cache.folder() / "hf" / (f"{self.name}@{self.revision}" if self.revision else self.name)

    def present(self) -> Path | None:
        """The weights in the cache; None if they are not there."""
        paths = [self.folder / name for name in ((self.file,) if self.file else WEIGHTS)]
        # Unlike `Path.is_file`, this is false of a name that is too long for a file.
        return next((path for path in paths if os.path.isfile(path)), None)


def endpoint() -> str:
    """The Hub's address, $HF_ENDPOINT if set."""
    return os.environ.get(ENDPOINT, "").rstrip("/") or _DEFAULT_ENDPOINT


def fetch(repository: Repository, say: Callable[[str], None], *, silent: bool = False) -> Path:
    """The path of the weights, downloaded unless they are in the cache, with config.json beside them.

    Args:
        repository: to take them from.
        say: prints a line for the user.
        silent: show no progress.

    Raises:
        InputError: the package is missing; there is no such repository, revision or file; it is gated or private;
            or what arrived is damaged.
        RunError: the Hub cannot be reached.
        WriteError: the cache cannot be written.
    """
    path = repository.present()
    if path is not None:
        cache.require_digest(path, cache.recorded(path))
        return path
    hub = _import(repository)
    cache.prepare(repository.folder / CONFIG)
    with cache.locked(repository.folder, say):
        path = repository.present()
        if path is not None:  # another process has brought it
            return path
        with _explained(hub, repository):
            return _download(hub, repository, say, silent)


def _download(hub, repository, say, silent):
    """The path of the weights, all files being of one commit."""
    revision = repository.revision or None
    with contextlib.suppress(hub.errors.EntryNotFoundError):
        revision = _metadata(hub, repository, CONFIG, revision).commit_hash
        _bring(hub, repository, CONFIG, revision, silent=True)
    candidates = (repository.file,) if repository.file else WEIGHTS
    for name in candidates:
        try:
            metadata = _metadata(hub, repository, name, revision)
        except hub.errors.EntryNotFoundError:
            continue
        size = "" if metadata.size is None else f" ({metadata.size / 1e6:.1f} MB)"
        say(f"downloading {name} of {repository.url}{size} to {repository.folder}")
        path = _bring(hub, repository, name, metadata.commit_hash, silent)
        # The ETag of a large file is its SHA-256, that of a small one a digest of git's.
        stated = metadata.etag or ""
        cache.require_digest(path, stated if len(stated) == 64 else "")
        cache.record(path, cache.sha256(path))
        return path
    raise InputError(
        f"{repository.url} has no {' nor '.join(candidates)}; name its file of weights, as in hf:{repository.name}/FILE"
    )


def _metadata(hub, repository, name, revision):
    url = hub.hf_hub_url(repository.name, name, revision=revision, endpoint=endpoint())
    return hub.get_hf_file_metadata(url, endpoint=endpoint())


def _bring(hub, repository, name, revision, silent):
    quiet = hub.utils.are_progress_bars_disabled()
    if silent and not quiet:
        hub.utils.disable_progress_bars()
    try:
        path = hub.hf_hub_download(
            repository.name, name, revision=revision, local_dir=repository.folder, endpoint=endpoint()
        )
    finally:
        if silent and not quiet:
            hub.utils.enable_progress_bars()
    return Path(path)


def _import(repository) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        raise InputError(
            f"huggingface_hub is needed to download {repository.url}: pip install 'cfmlc_jax[hub]'; or put "
            f"{repository.file or WEIGHTS[0]} and {CONFIG} of it in {repository.folder}"
        ) from error
    return huggingface_hub


@contextlib.contextmanager
def _explained(hub, repository) -> Iterator[None]:
    """Turn what the package raises inside the block into an error of one line."""
    errors, where = hub.errors, repository.url
    by_hand = f"put {repository.file or WEIGHTS[0]} and {CONFIG} of it in {repository.folder}"
    try:
        yield
    except WriteError:
        raise
    except errors.GatedRepoError as error:
        raise InputError(
            f"{where} is gated: accept its terms there, then log in by `hf auth login` or set $HF_TOKEN; or {by_hand}"
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise InputError(
            f"{where} does not exist, or is private; check the name, or log in by `hf auth login` or set $HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise InputError(
            f"{where} has no revision {repository.revision!r}; give a branch, tag or commit"
        ) from error
    except errors.HFValidationError as error:
        raise InputError(f"{repository.name!r} is not a repository's name; write hf:owner/name") from error
    except (OSError, errors.HTTPError) as error:
        number = getattr(error, "errno", None)
        if number is not None and not isinstance(error, ConnectionError | TimeoutError):
            raise WriteError(number, os.strerror(number), str(repository.folder)) from error
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", None)
        if status in (401, 403):
            raise InputError(
                f"{where} asks for a login (HTTP {status}): `hf auth login`, or set $HF_TOKEN; or {by_hand}"
            ) from error
        reason = " ".join(str(error).split())[:200] if status is None else f"HTTP {status}"
        raise RunError(f"{where} cannot be reached ({reason}); check the network, or {by_hand}") from error
