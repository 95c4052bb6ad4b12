"""What a run has left in its workdir, in a form that can be compared with another run's."""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import digests, lock
from cfmlc_jax.engine.writers import METRICS
from cfmlc_jax.errors import InputError

# The page holds times: it must be whole. Examples are others if numbers are.
_PAGE, _EXAMPLES = "index.html", "evidence.json"
# How far numbers may be apart when sums were added in another order: in the first line of a log that differs, and when
# more steps have let it grow. Relative; scores, which are in percent and of few images, by points.
FIRST, GROWN = 1e-3, 0.25
SCORE_POINTS = 10.0
# The same of arrays: the norm of the difference, relative to that of the array.
ARRAYS = 0.5
# Of an optimiser, and counts: these are not summed.
_EXACT = ("step", "epoch", "train/lr", "train/beta", "train/momentum")
# Normalised in names of files: numbers that differ from run to run.
_NUMBERS = re.compile(r"[0-9a-f]{32}|(?<=process_)[0-9]+")
# Where damaged checkpoints are put, for the user to look at.
_ASIDE = "damaged"
# What two undisturbed runs do not share: times, the digest of lines with times, and how the files were read.
_VOLATILE = ("time/", "memory/", "sha256", "workers", "fsdp")
_ITEMS = ("model", "training")
PARTS = (*_ITEMS, "meta")  # the folders of a checkpoint


@dataclass
class Ending:
    """A finished run.

    parts: the content of each comparable part, such as "report/results.json", or "checkpoints best", a step: an array, what
        JSON holds, or a digest of bytes.
    steps: for each checkpoint, such as "checkpoints/40", its parts.
    logs: for each metrics.jsonl, its lines.
    paths: of all files outside of checkpoints, and of those that do not belong into one.
    """

    parts: dict[str, Any] = field(default_factory=dict)
    steps: dict[str, dict[str, Any]] = field(default_factory=dict)
    logs: dict[str, list[Any]] = field(default_factory=dict)
    paths: set[str] = field(default_factory=set)

    @property
    def unreadable(self) -> list[str]:
        """What was not read, so that it could not be compared."""
        parts = [name for name, of_step in self.steps.items() if "unreadable" in of_step]
        return parts + [
            name
            for name in ("checkpoints", "logs")
            if not (self.steps if name == "checkpoints" else self.logs)
        ]

    def differences(
        self,
        expected: "Ending",
        *,
        rounded: bool = False,
        aside: bool = False,
        lost: tuple[str, int] | None = None,
        locked: bool = False,
    ) -> list[str]:
        """One line for each part that is missing, new or different; empty if both runs ended alike.

        Of the checkpoints between the best and the last one those are compared that both runs have: a run that was
        asked to end has saved at other steps, too.

        Args:
            expected: the ending of the run that was left alone.
            rounded: whether numbers may differ, because the run was on other devices: the first line of a log that
                differs by `FIRST` at most, those after it by `GROWN`, scores by `SCORE_POINTS`; arrays of the model and of
                scores by `ARRAYS`, and those of the optimiser, which are as noisy as gradients, as long as they are finite;
                what follows from the scores of few images: results, pictures, tables and examples.
            aside: whether a damaged checkpoint may have been set aside.
            lost: a metrics.jsonl of which the run said that lines are lost, and the last step of these.
            locked: whether the file of the lock may be there still, because the disk did not let the run remove it.
        """
        found_parts, parts = dict(self.parts), dict(expected.parts)
        if locked:
            found_parts.pop(lock.FILE, None)
        for name in self.steps.keys() & expected.steps.keys():
            found_parts |= {f"{name} {part}": value for part, value in self.steps[name].items()}
            parts |= {f"{name} {part}": value for part, value in expected.steps[name].items()}
        if lost is not None:
            # A checkpoint has the number of lines before it.
            for each in (found_parts, parts):
                each |= {
                    name: {key: entry for key, entry in part.items() if key != "logged"}
                    for name, part in each.items()
                    if name.endswith(" meta")
                }
        if rounded:
            found_parts, parts = (
                {name: part for name, part in each.items() if Path(name).name != _EXAMPLES}
                for each in (found_parts, parts)
            )

        def are_alike(name, found, part):
            if not rounded:
                return alike(found, part)
            return alike(found, part, within=math.inf if f" {_ITEMS[1]}/" in name else ARRAYS)

        lines = _differences(found_parts, parts, are_alike)
        for name in sorted(self.logs.keys() | expected.logs.keys()):
            found_log, log = (_lines(ending.logs.get(name, []), name, lost) for ending in (self, expected))
            near = _Growing() if rounded else alike
            lines += _differences(found_log, log, lambda _, found, line, near=near: near(found, line))
        more, fewer = self.paths - expected.paths, expected.paths - self.paths
        if aside:
            more = {path for path in more if Path(path).parts[0] != _ASIDE}
        if locked:
            more = more - {lock.FILE}
        return (
            lines
            + [f"left: {path}" for path in sorted(more)]
            + [f"missing: {path}" for path in sorted(fewer)]
        )


def _lines(log, name, lost):
    """The lines of a metrics.jsonl as parts; without those that are lost."""
    if lost is not None and name == lost[0]:
        log = [line for line in log if isinstance(line, dict) and line["step"] > lost[1]]
    return {f"{name} line {number:03}": line for number, line in enumerate(log, start=1)}


def _differences(found, expected, are_alike):
    lines = []
    for name in sorted(found.keys() | expected.keys()):
        if name not in found or name not in expected:
            lines.append(f"{name} is only in one")
        elif not are_alike(name, found[name], expected[name]):
            lines.append(f"{name} differs")
    return lines


class _Growing:
    """Compares the lines of a log in order, whose numbers are rounded otherwise from some line on."""

    def __init__(self):
        self._tolerance = FIRST

    def __call__(self, found, expected):
        if alike(found, expected):
            return True
        if not isinstance(found, dict) or found.keys() != expected.keys():
            return False
        near = all(self._near(key, found[key], value) for key, value in expected.items())
        self._tolerance = GROWN
        return near

    def _near(self, key, found, expected):
        if key.startswith(_EXACT) or found is None or expected is None:
            return alike(found, expected)
        if key.startswith("val/"):
            return abs(found - expected) <= SCORE_POINTS
        return abs(found - expected) <= self._tolerance * abs(expected)


def alike(found: Any, expected: Any, *, within: float | None = None) -> bool:
    """Whether two contents are the same.

    Args:
        found: an array, what JSON holds, or the digest of a file.
        expected: likewise.
        within: how far arrays may be apart (`apart`); other numbers that are not whole, and digests, may be any then.
    """
    if type(found) is not type(expected):
        return False
    if isinstance(expected, np.ndarray):
        if (found.dtype, found.shape) != (expected.dtype, expected.shape):
            return False
        if within is not None and np.issubdtype(expected.dtype, np.floating):
            return apart(found, expected) <= within
        return found.tobytes() == expected.tobytes()
    if isinstance(expected, dict):
        return found.keys() == expected.keys() and all(
            alike(found[key], expected[key], within=within) for key in expected
        )
    if isinstance(expected, list):
        return len(found) == len(expected) and all(
            alike(*both, within=within) for both in zip(found, expected)
        )
    if within is not None and isinstance(expected, float | bytes):
        return True
    return found == expected or (found != found and expected != expected)  # NaN


def apart(found: np.ndarray, expected: np.ndarray) -> float:
    """The norm of the difference of two arrays, relative to that of the second; NaN if only one of two values is finite."""
    finite = np.isfinite(expected)
    if not np.array_equal(np.isfinite(found), finite):
        return math.nan
    found, expected = found[finite].astype(np.float64), expected[finite].astype(np.float64)
    difference, norm = np.linalg.norm(found - expected), np.linalg.norm(expected)
    return 0.0 if not difference else float(difference / norm) if norm else math.inf


def read(workdir: Path) -> Ending:
    """The ending of a run and of the runs in its folder."""
    ending = Ending()
    for folder in sorted(path for path in workdir.rglob("checkpoints") if path.is_dir()):
        _read_checkpoints(ending, folder, str(folder.relative_to(workdir)), workdir)
    for path in sorted(workdir.rglob("*")):
        name = str(path.relative_to(workdir))
        if not path.is_file() or "checkpoints" in path.relative_to(workdir).parts:
            continue
        ending.paths.add(name)
        if path.name == METRICS:
            lines = path.read_text(errors="replace").splitlines()
            ending.logs[name] = [_parsed(line) for line in lines]
        elif path.name == _PAGE:
            ending.parts[name] = path.read_text().rstrip().endswith("</html>")
        elif Path(name).parts[0] != _ASIDE:
            ending.parts[name] = _content(path, workdir)
    return ending


def _read_checkpoints(ending, folder, name, workdir):
    steps = sorted(int(path.name) for path in folder.iterdir() if path.name.isdecimal())
    ending.parts[f"{name} last"] = steps[-1] if steps else None
    ending.paths |= {f"{name}/{path.name}" for path in folder.iterdir() if not path.name.isdecimal()}
    if not steps:
        return
    best = int(checkpoints.find(folder).name)
    ending.parts[f"{name} best"] = best
    ending.paths |= {f"{name}/{step}" for step in steps[: -checkpoints.KEEP_LATEST] if step != best}
    for step in steps:
        checkpoint = folder / str(step)
        ending.paths |= {
            str(path.relative_to(workdir))
            for path in checkpoint.rglob("*")
            if path.name.startswith(".") or "tmp" in path.name
        }
        ending.steps[f"{name}/{step}"] = dict(_of_checkpoint(checkpoint, workdir))


def _of_checkpoint(checkpoint, workdir) -> Iterator[tuple[str, Any]]:
    """Its parts: all arrays, whatever devices they were saved on, its meta and its rank."""
    rank = checkpoint / "rank.json"
    if rank.exists():
        yield rank.name, _content(rank, workdir)
    yield "digests", _of_digests(checkpoint)
    try:
        meta = checkpoints.read_meta(checkpoint)
        values = arrays(checkpoint)
    except (InputError, OSError, ValueError, KeyError, TypeError) as error:
        yield "unreadable", str(error)
        return
    yield "meta", _steady(json.loads(_placeless(json.dumps(meta), workdir)))
    for path, value in jax.tree.leaves_with_path(values):
        yield jax.tree_util.keystr(path, simple=True, separator="/"), np.asarray(value)


def _of_digests(checkpoint):
    """What the digests of a checkpoint say of its files: the names that have one, those without, and what is wrong."""
    try:
        named = json.loads((checkpoint / digests.FILE).read_bytes())
    except (OSError, ValueError) as error:
        return str(error)
    present = {
        path.relative_to(checkpoint).as_posix()
        for item in PARTS
        for path in (checkpoint / item).rglob("*")
        if path.is_file()
    }
    wrong = digests.difference(checkpoint, PARTS)
    return [
        sorted({_NUMBERS.sub("N", name) for name in names}) for names in (named, present - named.keys())
    ], wrong


def arrays(checkpoint: Path) -> dict[str, Any]:
    """The items of a checkpoint as NumPy's arrays, whatever devices they were saved on."""
    handler = ocp.CompositeCheckpointHandler(
        **{item: ocp.PyTreeCheckpointHandler() for item in _ITEMS}, meta=ocp.JsonCheckpointHandler()
    )
    with ocp.Checkpointer(handler) as checkpointer:
        stored = checkpointer.metadata(checkpoint).item_metadata
        as_numpy = {
            item: jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), stored[item].tree)
            for item in _ITEMS
        }
        restored = checkpointer.restore(
            checkpoint,
            args=ocp.args.Composite(
                **{item: ocp.args.PyTreeRestore(restore_args=args) for item, args in as_numpy.items()}
            ),
        )
    return {item: restored[item] for item in _ITEMS}


def _content(path, workdir):
    if path.suffix == ".json":
        return _parsed(_placeless(path.read_text(errors="replace"), workdir))
    if path.suffix == ".npy":
        return np.load(path)
    if path.suffix == ".npz":
        with np.load(path) as stored:
            return {key: stored[key] for key in stored}
    return hashlib.sha256(path.read_bytes()).digest()


def _placeless(text, workdir):
    """A text without the place of the workdir: a classifier in that of a generator names its records by it."""
    return text.replace(str(workdir), "WORKDIR")


def _parsed(text):
    try:
        return _steady(json.loads(text))
    except ValueError:
        return text


def _steady(content):
    """What JSON holds, without what two undisturbed runs do not share."""
    if isinstance(content, dict):
        return {key: _steady(value) for key, value in content.items() if not key.startswith(_VOLATILE)}
    return [_steady(value) for value in content] if isinstance(content, list) else content
