"""Compares our numbers with those of the PyTorch reference, stage by stage and step by step.

    git clone https://github.com/xiemk/MLC-PAT
    python -m scripts.parity --reference=MLC-PAT --model=resnet101 [--checkpoint=FILE]

The checkout (tested with commit 4026970) is imported and run unchanged on CPU: its models, its loss, its
`train`. Weights come from a checkpoint or are random. Both sides get the same inputs (photos, or plane waves)
and run without dropout.

Tolerances are measured, not chosen: PyTorch also runs in float64, and the difference to its own float32
result is the rounding of a stage. Ours may differ by 10 times that; another order of summation alone
gives one to three times. Gradients have a second kind of rounding: a ReLU whose input is almost zero can
be active on one side and inactive on the other. If the tolerance is above 5 % of the numbers and ours
differ by more than 5 % but less than the tolerance, nothing can be concluded, and the verdict is "rounding".
Such ReLUs are rare, so in float32 the tolerance of gradients and changes has a formula as its floor (`verdicts.kinks`).
With --dtype=float64 both sides run in float64, ReLUs agree, and tolerances are 1.2e-6, for gradients 1e-4 and for
changes of Query2Label 1e-5, at twice the memory: a difference is then a bug. This is the best way to compare
training, and the only one that notices a weight decay that is not applied.
With --dtype=bfloat16 distances are printed without verdicts.
Exit codes: 0 all stages agree (or have no verdict); 1 a stage differs, or an error, printed in one line; 2 none differs,
but some are inconclusive.
"""

import argparse
import gc
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from cfmlc_jax import cli
from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.torch_names import BRANCHES
from scripts.parity import inputs, ours, recipe, subject, tables, verdicts

FILES = ("run_PAT-T.py", "run_asl.py", "src_files/models/factory.py", "src_files/utils/losses.py")
DTYPES = ("float32", "float64", "bfloat16")


@cli.command
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit code."""
    flags = parse(arguments)
    checkout = check_checkout(Path(flags.reference))
    check_torch(importlib.util.find_spec("torch") is not None)
    rows = run(flags, checkout)
    print(
        f"{flags.model}, {flags.batch} images of {1 + inputs.GRID**2} views of {flags.size} px, {flags.dtype}\n"
    )
    print(tables.table(rows))
    print(f"\n{tables.summary(rows)}")
    return exit_code(rows)


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The checked flags.

    Raises:
        InputError: a flag cannot be used.
    """
    parser = cli.Parser(prog="python -m scripts.parity", description=__doc__)
    parser.add_argument("--reference", required=True, help="a checkout of MLC-PAT")
    parser.add_argument("--model", required=True, help="a name in cfmlc_jax/models/catalogue.py")
    parser.add_argument("--checkpoint", default="", help="PyTorch weights (default: random ones)")
    parser.add_argument(
        "--size", type=cli.whole_number(1), default=128, help="side of a view (default: %(default)s)"
    )
    parser.add_argument("--classes", type=cli.whole_number(1), help="(default: the checkpoint's, or 80)")
    parser.add_argument("--attention", choices=BRANCHES, help="(default: the checkpoint's, or cross)")
    parser.add_argument("--batch", type=cli.whole_number(1), default=2, help="images (default: %(default)s)")
    parser.add_argument(
        "--train-steps",
        type=cli.whole_number(0),
        default=5,
        help="compared (default: %(default)s)",
    )
    parser.add_argument("--seed", type=cli.whole_number(0), default=0, help="of weights, waves and labels")
    parser.add_argument("--images", default="", help="folder of photos (default: waves)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the computation")
    flags = parser.parse_args(arguments)
    catalogue.parts(flags.model)  # raises for a misspelt name, with a suggestion
    subject.reference_name(flags.model)
    catalogue.create_model(flags.model, 1, attention="none", image_size=flags.size)
    return flags


def exit_code(rows: Sequence[verdicts.Row]) -> int:
    """1 if a row differs, else 2 if one is inconclusive, else 0."""
    distinct = {row.verdict for row in rows}
    return 1 if "differs" in distinct else 2 if "rounding" in distinct else 0


def check_checkout(folder: Path) -> Path:
    """The absolute path of a checkout of MLC-PAT.

    Raises:
        InputError: the folder lacks one of `FILES`.
    """
    for file in FILES:
        if not (folder / file).is_file():
            raise InputError(
                f"--reference={folder} is not a checkout of MLC-PAT: {file} is missing; "
                "git clone https://github.com/xiemk/MLC-PAT and give that folder"
            )
    return folder.resolve()


def check_torch(installed: bool) -> None:
    """Raise unless PyTorch is installed.

    Raises:
        InputError: it is not.
    """
    if not installed:
        raise InputError(
            "the reference needs PyTorch (the CPU build is enough); pip install 'cfmlc_jax[torch]'"
        )


def run(flags: argparse.Namespace, checkout: Path) -> list[verdicts.Row]:
    """All rows of the comparison.

    Raises:
        InputError: a checkpoint, a folder of images or a checkout cannot be used.
    """
    from scripts.parity import random_weights, reference  # imported here because they need PyTorch

    def create(num_classes, attention):
        name = subject.reference_name(flags.model)
        return reference.Reference(checkout, name, num_classes, attention=attention, size=flags.size)

    def fill(num_classes, attention):
        return random_weights.fill(create(num_classes, attention).model, seed=flags.seed)

    compared = subject.from_checkpoint(flags) if flags.checkpoint else subject.at_random(flags, fill)
    views, batches = inputs.make_views(flags, 0), inputs.make_batches(flags, compared.num_classes)

    def observed(exact):
        gc.collect()  # frees the previous optimiser and schedule, which refer to each other
        model = create(compared.num_classes, compared.attention)
        return reference.observe(model, compared, views, batches, exact=exact)

    # One after the other, because each training state takes several times the memory of the model.
    exact = observed(True)
    theirs = exact if flags.dtype == "float64" else observed(False)
    gc.collect()
    own = ours.observe(compared, views, batches, size=flags.size, dtype=flags.dtype, recipe=recipe)
    rows = verdicts.stage_rows(own.stages, theirs.stages, exact.stages)
    if theirs is exact:
        known = verdicts.FAINT
        # Only Query2Label has float32 numbers inside.
        known_change = verdicts.FAINT_CHANGE if flags.model.startswith(catalogue.QUERY2LABEL) else 0.0
    else:
        known = known_change = verdicts.kinks(rows, theirs.stages["layer4"])
    rows += verdicts.step_rows(own.steps, theirs.steps, exact.steps, known=known, known_change=known_change)
    return [row._replace(verdict="–") for row in rows] if flags.dtype == "bfloat16" else rows


if __name__ == "__main__":
    sys.exit(main())
