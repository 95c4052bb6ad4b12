"""What a run has left in its workdir, in a form that can be compared with another run's."""

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

# Of these files the bytes are compared. `index.html` holds times.
_COMPARED = (
    "*.md",
    "*.csv",
    "*.png",
    "*.jpg",
    "*.array_record",
    "config.json",
    "parameters.txt",
    "results.json",
)
# Where damaged checkpoints are put, for the user to look at.
_ASIDE = "damaged/"
# What differs between two undisturbed runs.
_VOLATILE = ("time/", "memory/")


@dataclass
class Ending:
    """A finished run.

    parts: for each comparable part, such as "checkpoints/40 model" or "metrics.jsonl line 3", its content or a digest.
    paths: of all files, those inside of checkpoints left out.
    """

    parts: dict[str, Any] = field(default_factory=dict)
    paths: set[str] = field(default_factory=set)

    def differences(
        self, expected: "Ending", *, same_numbers: bool = True, without: str | None = None
    ) -> list[str]:
        """One line for each part that is missing, new or different; empty if both runs ended alike.

        Args:
            expected: the ending of the run that was left alone.
            same_numbers: whether the contents must be the same, too, not only the files and the last steps.
            without: the name of files that are not compared, or whose lines are not, in all folders: the classifiers of
                a generative network have folders of their own.
        """
        names = sorted(self.parts.keys() | expected.parts.keys())
        if not same_numbers:
            names = [name for name in names if name.endswith(" last")]
        if without is not None:
            names = [name for name in names if Path(name.partition(" line ")[0]).name != without]
        lines = [
            f"{name} differs" if name in self.parts and name in expected.parts else f"{name} is only in one"
            for name in names
            if self.parts.get(name) != expected.parts.get(name)
        ]
        more, fewer = self.paths - expected.paths, expected.paths - self.paths
        more = {path for path in more if not path.startswith(_ASIDE)}
        return (
            lines
            + [f"left: {path}" for path in sorted(more)]
            + [f"missing: {path}" for path in sorted(fewer)]
        )


def read(workdir: Path) -> Ending:
    """The ending of a run and of the runs in its folder."""
    ending = Ending()
    for folder in sorted(path for path in workdir.rglob("checkpoints") if path.is_dir()):
        steps = sorted((int(path.name) for path in folder.iterdir() if path.name.isdecimal()), reverse=True)
        name = folder.relative_to(workdir)
        ending.parts[f"{name} last"] = steps[0] if steps else None
        ending.paths |= {f"{name}/{path.name}" for path in folder.iterdir() if not path.name.isdecimal()}
        if steps:
            for item, digest in _arrays(folder / str(steps[0])).items():
                ending.parts[f"{name}/{steps[0]} {item}"] = digest
    for path in sorted(workdir.rglob("*")):
        name = path.relative_to(workdir)
        if not path.is_file() or "checkpoints" in name.parts:
            continue
        ending.paths.add(str(name))
        if path.name == "metrics.jsonl":
            for number, line in enumerate(path.read_text().splitlines()):
                content = {
                    key: value for key, value in json.loads(line).items() if not key.startswith(_VOLATILE)
                }
                ending.parts[f"{name} line {number + 1}"] = content
        elif path.suffix == ".npz":
            with np.load(path) as stored:
                ending.parts[str(name)] = {key: _digest(stored[key]) for key in stored}
        elif any(path.match(pattern) for pattern in _COMPARED):
            # The configuration of a classifier in the workdir of a generator names its records by their place.
            placeless = path.read_bytes().replace(bytes(workdir), b"WORKDIR")
            ending.parts[str(name)] = hashlib.sha256(placeless).hexdigest()
    return ending


def _arrays(checkpoint: Path) -> dict[str, str]:
    """Digests of the items of a checkpoint: names, shapes and bits of all arrays, whatever devices they were saved on."""
    items = ("model", "training")
    handler = ocp.CompositeCheckpointHandler(
        **{item: ocp.PyTreeCheckpointHandler() for item in items}, meta=ocp.JsonCheckpointHandler()
    )
    with ocp.Checkpointer(handler) as checkpointer:
        stored = checkpointer.metadata(checkpoint).item_metadata
        as_numpy = {
            item: jax.tree.map(lambda leaf: ocp.RestoreArgs(restore_type=np.ndarray), stored[item].tree)
            for item in items
        }
        restored = checkpointer.restore(
            checkpoint,
            args=ocp.args.Composite(
                **{item: ocp.args.PyTreeRestore(restore_args=args) for item, args in as_numpy.items()}
            ),
        )
    digests = {}
    for item in items:
        digest = hashlib.sha256()
        for path, value in jax.tree_util.tree_leaves_with_path(restored[item]):
            digest.update(f"{jax.tree_util.keystr(path)} {_digest(value)}".encode())
        digests[item] = digest.hexdigest()
    return digests


def _digest(value):
    array = np.asarray(value)
    return hashlib.sha256(f"{array.dtype} {array.shape}".encode() + array.tobytes()).hexdigest()
