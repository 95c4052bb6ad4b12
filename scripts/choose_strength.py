"""Chooses the strength of a total direct effect on the validation split of a checkpoint, reweighted.

    python -m scripts.choose_strength --checkpoint=runs/scenes_exclusive [--kind=owner] [--owners=runs/decorrelated]

The weights make the labels of the validation images as independent as --effective_share allows, from these labels alone
(docs/evidence.md). Prints mAP by strength, and the strength with the best weighted one, as flags of the evaluation. Evaluate
with the same --kind, --owners and --classes: the strength is chosen for these.
"""

import argparse
import shlex
import sys
from pathlib import Path
from typing import Any

from cfmlc_jax import cli, files
from cfmlc_jax import config as configs
from cfmlc_jax.classify import opening, scoring, strength
from cfmlc_jax.config.classifier import EFFECTS
from cfmlc_jax.data import build as data
from cfmlc_jax.errors import InputError
from cfmlc_jax.results.split import AVERAGE
from cfmlc_jax.results.tables import markdown

ALPHAS = tuple(step / 10 for step in range(11))


@cli.command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    chosen, fields = _chosen(_parse(arguments))
    print(_report(chosen, fields))
    return 0


def _parse(arguments) -> argparse.Namespace:
    parser = cli.Parser(prog="python -m scripts.choose_strength", description=__doc__)
    parser.add_argument("--checkpoint", required=True, type=files.any_path, help="a run or a checkpoint")
    parser.add_argument("--kind", choices=EFFECTS, default="owner", help="of counterfactual; default owner")
    parser.add_argument(
        "--owners",
        type=files.any_path,
        help="checkpoint whose cells say who owns a pixel; default: the checkpoint itself",
    )
    parser.add_argument(
        "--classes",
        type=cli.whole_number(1),
        help="of each image that lose their pixels, for owner; default: the checkpoint's effect.classes",
    )
    parser.add_argument(
        "--effective_share",
        type=float,
        default=0.25,
        help="of the weights; default 0.25, as in configs/scenes.py",
    )
    return parser.parse_args(arguments)


def _chosen(flags) -> tuple[strength.Strength, dict[str, Any]]:
    """The strength, and the fields of the effect that it is chosen for."""
    opened = opening.open(flags.checkpoint)
    if opened.config.task == "single_label":
        raise InputError(
            f"{opened.path} is single-label: its labels exclude each other, and no weight makes them independent"
        )
    fields: dict[str, Any] = {"effect.kinds": (flags.kind,)}
    if flags.kind == "owner":
        effect = opened.config.effect
        fields["effect.owners"] = effect.owners if flags.owners is None else str(Path(flags.owners))
        fields["effect.classes"] = flags.classes or effect.classes
    elif flags.owners is not None or flags.classes is not None:
        raise InputError(f"--owners and --classes are for --kind=owner, not --kind={flags.kind}; omit them")
    config = configs.replaced(opened.config, fields)
    opened = opening.open(flags.checkpoint, config)
    split = data.source(config.data, config.data.val_split)
    score = scoring.score_step(config, opened.parts, (flags.kind,))
    scores, _ = scoring.score_readable(
        opened.parts, score, opened.model, split, batch_size=config.evaluate.batch_size, weights=(AVERAGE,)
    )
    return strength.choose(scores[AVERAGE], flags.kind, ALPHAS, flags.effective_share), fields


def _report(chosen: strength.Strength, fields: dict[str, Any]) -> str:
    rows = [
        [f"{alpha:g}", f"{biased:.2f}", f"{weighted:.2f}"]
        for alpha, biased, weighted in zip(chosen.alphas, chosen.biased, chosen.weighted, strict=True)
    ]
    table = markdown(["strength", "mAP, validation", "mAP, weighted"], rows)
    flags = " ".join(
        f"--config.{name}={shlex.quote(str(value))}"
        for name, value in (fields | {"effect.alphas": f"({chosen.alpha:g},)"}).items()
    )
    return f"{chosen.decorrelation.summary()}\n\n{table}\n\nchosen: {flags}"


if __name__ == "__main__":
    sys.exit(main())
