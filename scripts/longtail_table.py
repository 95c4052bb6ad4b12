"""Accuracy on long-tailed digits over seeds: plain, cosine, De-confound, De-confound-TDE.

    python -m scripts.longtail_table [--seeds=3] [--workdir=runs/longtail_table] [FLAG=VALUE …]

Trains configs/longtail_digits.py:VARIANT for every variant and seed (of the weights and of the subset of
images), one after the other. Finished runs are not repeated, and interrupted runs resume; a workdir of other flags
is refused. The strength of an
effect is the one with the highest accuracy on the validation split, averaged over the
seeds. Prints a Markdown table of test accuracies, mean ± deviation over the seeds, and writes it to
WORKDIR/table.md. Further arguments are flags of python -m cfmlc_jax.main, such as --config.train.epochs=5.
Exit code 1: a run failed and printed why.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

from cfmlc_jax import cli, files
from cfmlc_jax.results import tables
from cfmlc_jax.results.predictions import WHOLE, effect_of
from scripts import made_with

CONFIG = Path(__file__).parents[1] / "configs" / "longtail_digits.py"
METRICS = ("top1", "many", "medium", "few")
ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5)
# Rows: title, the variant that is trained, and whether the row shows its effect.
ROWS = (
    ("plain", "plain", False),
    ("cosine", "cosine", False),
    ("Cosine-TDE", "cosine", True),
    ("De-confound", "deconfound", False),
    ("De-confound-TDE", "deconfound", True),
)
VARIANTS = tuple(dict.fromkeys(variant for _, variant, _ in ROWS))


@cli.command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    flags, further = parse(__doc__, "runs/longtail_table", arguments)
    made_with.require_same(flags.workdir, further)
    for seed in range(flags.seeds):
        for variant in VARIANTS:
            workdir = workdir_of(flags, variant, seed)
            if not has_page(workdir) and not _train(variant, seed, workdir, further):
                return 1
    write(flags, table(flags))
    return 0


def parse(
    description: str | None, workdir: str, arguments: list[str] | None
) -> tuple[argparse.Namespace, list[str]]:
    """The number of seeds and the workdir (and its default), and further arguments: flags of cfmlc_jax.main."""
    parser = cli.Parser(description=description)
    parser.add_argument(
        "--seeds", type=int, choices=range(1, 100), default=3, metavar="N", help="number of seeds: 0, 1, …"
    )
    parser.add_argument("--workdir", type=files.local_path, default=Path(workdir))
    return parser.parse_known_args(arguments)


def workdir_of(flags: argparse.Namespace, variant: str, seed: int) -> Path:
    """The workdir of one run."""
    return flags.workdir / f"{variant}-{seed}"


def has_page(workdir: Path) -> bool:
    """Whether a run is finished: its report is the last that it writes."""
    return (workdir / "report" / "index.html").exists()


def run_main(*words: str) -> bool:
    """Whether `python -m cfmlc_jax.main` with these arguments ended without an error; all that it prints is on stderr."""
    command = [sys.executable, "-m", "cfmlc_jax.main", *words]
    print(" ".join(command), file=sys.stderr, flush=True)
    return subprocess.run(command, stdout=sys.stderr, check=False).returncode == 0


def write(flags: argparse.Namespace, text: str) -> None:
    """Write the table into the workdir, and print it."""
    files.write_text(flags.workdir / "table.md", text + "\n")
    print(text)


def spread(values: list[float]) -> str:
    """Mean ± sample deviation over the seeds."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.1f} ± {deviation:.1f}"


def _train(variant, seed, workdir, further) -> bool:
    return run_main(
        *(f"--config={CONFIG}:{variant}", f"--workdir={workdir}", f"--config.seed={seed}"),
        f"--config.data.longtail.subset_seed={seed}",
        f"--config.effect.alphas={ALPHAS}",
        "--config.data.test_splits=('val', 'test')",
        *further,
    )


def table(flags: argparse.Namespace) -> str:
    """Accuracies in percent as a Markdown table, mean ± sample deviation over the seeds."""
    rows = []
    for name, variant, effect in ROWS:
        seeds = [_metrics(workdir_of(flags, variant, seed)) for seed in range(flags.seeds)]
        prediction = WHOLE.name
        if effect:
            alpha = max(ALPHAS, key=lambda alpha: sum(seed["val"][_effect(alpha)]["top1"] for seed in seeds))
            prediction, name = _effect(alpha), f"{name}, α {alpha:g}"
        test = [seed["test"][prediction] for seed in seeds]
        rows.append([name, *(spread([values[metric] for values in test]) for metric in METRICS)])
    return tables.markdown([f"accuracy %, {flags.seeds} seeds", "all", "many", "medium", "few"], rows)


def _effect(alpha):
    return effect_of("feature", alpha).name


def _metrics(workdir):
    """Metrics of the averaged weights: split -> prediction -> metric."""
    results = json.loads((workdir / "report" / "results.json").read_text(encoding="utf-8"))
    return {split: own["average"]["metrics"] for split, own in results.items()}


if __name__ == "__main__":
    sys.exit(main())
