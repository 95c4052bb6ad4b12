"""How many labels that were flipped on purpose are found: digit scenes, out-of-sample scores, cleanlab.

    python -m scripts.label_errors [--scenes=6000] [--flipped=0.05] [--workdir=runs/label_errors] [FLAG=VALUE …]

Writes the scenes as images of one's own in two halves, and flips labels: a share of the present ones is removed, and as
many absent ones are added. Trains configs/scenes.py:exclusive on each half and scores the other,
so that every scene is scored by a classifier that has not seen its labels: that of the last step, because the best one is
chosen by the labels of the other half. Prints a Markdown table of what is found, and writes it to WORKDIR/table.md. Finished runs are not repeated; a workdir of other flags is refused. Further arguments
are flags of python -m cfmlc_jax.main. Needs pip install cleanlab.
Exit code 1: a run failed and printed why.
"""

import argparse
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from cfmlc_jax import cli, files
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.errors import InputError
from cfmlc_jax.results import tables
from scripts import made_with

CONFIG = Path(__file__).parents[1] / "configs" / "scenes.py"
HALVES = ("a", "b")
FIXED = (
    "--config.data.source=table",
    '--config.data.test_splits=("val",)',
    "--config.effect.kinds=()",
    "--config.train.early_stop=False",
    "--config.evaluate.checkpoint=last",
)


@cli.command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = cli.Parser(prog="python -m scripts.label_errors", description=__doc__)
    parser.add_argument("--scenes", type=cli.whole_number(20), default=6000)
    parser.add_argument("--flipped", type=_share, default=0.05, metavar="SHARE", help="of the present labels")
    parser.add_argument("--workdir", type=Path, default=Path("runs/label_errors"))
    try:
        flags, further = parser.parse_known_args(arguments)
        _measure(flags.scenes, flags.flipped, flags.workdir.absolute(), further)
    except subprocess.CalledProcessError as error:
        print(f"error: {' '.join(map(str, error.cmd[1:4]))} … ended with {error.returncode}", file=sys.stderr)
        return 1
    return 0


def _share(text):
    value = float(text) if text.replace(".", "", 1).isdecimal() else -1.0
    if not 0 < value < 0.5:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0 and below 0.5")
    return value


def flip(labels: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Which entries are flipped: uint8 [n, k] -> bool [n, k]; a share of the present ones, and as many absent ones."""
    flipped = np.zeros(labels.shape, bool)
    count = round(share * int(labels.sum()))
    for value in (1, 0):
        entries = np.argwhere(labels == value)
        chosen = entries[generator.choice(len(entries), count, replace=False)]
        flipped[tuple(chosen.T)] = True
    return flipped


def _measure(scenes, share, workdir, further):
    made_with.require_same(workdir, [f"--scenes={scenes}", f"--flipped={share}", *further])
    source = Scenes("train", num_scenes=scenes)
    flipped = flip(source.labels, share, np.random.default_rng(0))
    noisy = source.labels ^ flipped
    scored = {}
    for half, other in (HALVES, HALVES[::-1]):
        data, run = workdir / f"data_{half}", workdir / f"run_{half}"
        _write(data, source, noisy, {"train": _half(scenes, half), "val": _half(scenes, other)})
        if not (run / "report" / "index.html").exists():
            place = f"--config.data.root={data}"
            _python(
                "cfmlc_jax.main", f"--config={CONFIG}:exclusive", *FIXED, place, f"--workdir={run}", *further
            )
        out = workdir / f"scores_{other}.npz"
        if not out.exists():
            _python("cfmlc_jax.decisions", "scores", str(last_step(run)), "--batch_size=100", f"--out={out}")
        with np.load(out) as arrays:
            scored[other] = arrays["labels"], arrays["scores"]
    rows = np.concatenate([_half(scenes, half) for half in HALVES])
    labels, scores = (np.concatenate([scored[half][i] for half in HALVES]) for i in (0, 1))
    assert (labels == noisy[rows]).all()
    table = report(labels, scores, flipped[rows])
    print(table)
    files.write_text(workdir / "table.md", table + "\n")


def last_step(run: Path) -> Path:
    """The checkpoint of a run's last step; the folder of the run would stand for its best, by the labels to be judged."""
    steps = [path for path in (run / "checkpoints").iterdir() if path.name.isdecimal()]
    return max(steps, key=lambda path: int(path.name))


def _half(scenes, half):
    return np.arange(HALVES.index(half), scenes, 2)


def _write(folder, source, labels, splits):
    """Write the splits' images and tables, unless they are there."""
    folder.mkdir(parents=True, exist_ok=True)
    files.write_text(folder / "classes.txt", "\n".join(source.class_names) + "\n")
    for split, rows in splits.items():
        lines = []
        for i in rows.tolist():
            name = f"{source.ids[i]}.png"
            if not (folder / name).exists():
                Image.fromarray(source[i]["image"]).save(folder / name)
            lines.append(f"{name},{';'.join(source.class_names[k] for k in np.flatnonzero(labels[i]))}\n")
        files.write_text(folder / f"{split}.csv", "".join(lines))


def _python(module, *arguments):
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


def report(labels: np.ndarray, scores: np.ndarray, flipped: np.ndarray) -> str:
    """A Markdown table of what is found by scores: three [n, k]; in percent of the flipped entries and of what is shown."""
    found = {"cleanlab, multi-label filter": cleanlab_issues(labels, scores)}
    doubt = np.abs(labels - scores)
    found[f"the {flipped.sum()} entries in which label and score differ most"] = (
        doubt >= np.sort(doubt.ravel())[-int(flipped.sum())]
    )
    rows = []
    for title, shown in found.items():
        hits = shown & flipped
        counts = (flipped, flipped & (labels == 0), flipped & (labels == 1))
        recalls = [100 * float((shown & kind).sum() / kind.sum()) for kind in counts]
        rows.append([title, int(shown.sum()), 100 * float(hits.sum() / max(shown.sum(), 1)), *recalls])
    header = ["shown entries", "number", "precision %", "recall %", "of removed labels", "of added labels"]
    return tables.markdown(header, rows)


def cleanlab_issues(labels: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """The entries that cleanlab takes for label errors: two [n, k] -> bool [n, k].

    Raises:
        InputError: cleanlab is not installed.
    """
    try:
        from cleanlab.multilabel_classification import filter as filters
    except ImportError as error:
        raise InputError("cleanlab is not installed; pip install cleanlab") from error
    listed = [np.flatnonzero(row).tolist() for row in labels]
    return np.asarray(filters.find_multilabel_issues_per_class(listed, scores.astype(np.float64), n_jobs=1))


if __name__ == "__main__":
    sys.exit(main())
