"""How much a classifier relies on context, measured on any data set with boxes.

    python -m cfmlc_jax.context --checkpoint=runs/coco [--root=/data/coco] [--out=DIR]

Takes the pairs of classes that co-occur most strongly in the training labels, and reports excess of false positives and
context AUC on the evaluation split, as it is and reweighted so that its labels are as independent as they can be. Then it
removes the objects of a context class from photos (by COCO's outlines, else by boxes), fills the hole from its rim, and
reports how the scores of the removed class and of its targets move. Of the embedded scenes the true pictures without the
object are known, and are compared.

Writes context.md (tables), context.json (all numbers) and context.jpg (some of the photos) to --out.

Exit codes: 0 done; 1 an error, printed in one line; 130 interrupted, 143 by SIGTERM.
"""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path

from cfmlc_jax import cli

if __name__ == "__main__":
    cli.greet(sys.argv[1:])
    cli.end_at_interrupt("nothing was written")

import numpy as np

from cfmlc_jax import config as configs
from cfmlc_jax import files
from cfmlc_jax.classify import boxes as image_boxes
from cfmlc_jax.classify import build, opening, scoring
from cfmlc_jax.clusters import detect
from cfmlc_jax.context import protocol, removal, sheet
from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.errors import InputError, printable
from cfmlc_jax.metrics import cooccurrence
from cfmlc_jax.results.predictions import COMBINED
from cfmlc_jax.results.scores import Scores, probabilities
from cfmlc_jax.results.split import AVERAGE

FEWEST = 10  # pictures with a removal, and images of the split
SHOWN = 8  # removals in the sheet
FACTS = 4  # targets beside each of them


@cli.command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line (default: sys.argv), and return the exit code."""
    flags = _parser().parse_args(arguments)
    detect.require_one_process(flags.cluster)
    _measure(flags)
    return 0


def _parser():
    parser = cli.Parser(prog="python -m cfmlc_jax.context", description=__doc__)
    parser.add_argument("--checkpoint", type=files.any_path, required=True, help="a run or a checkpoint")
    parser.add_argument("--split", help="split to measure (default: the first of config.data.test_splits)")
    parser.add_argument("--root", help="folder of the data, instead of the checkpoint's config.data.root")
    parser.add_argument("--out", type=files.local_path, help="output folder (default: runs/<name>_context)")
    parser.add_argument("--pairs", type=cli.whole_number(1), default=20, help="most pairs (default: 20)")
    parser.add_argument(
        "--min_images",
        type=cli.whole_number(1),
        default=10,
        help="training images that a pair needs (default: 10)",
    )
    parser.add_argument(
        "--removals",
        type=cli.whole_number(0),
        default=400,
        help="photos to remove a class from (default: 400; 0: none)",
    )
    parser.add_argument(
        "--largest", type=_share, default=0.3, help="greatest share of a photo that is removed (default: 0.3)"
    )
    parser.add_argument(
        "--effective_share", type=_share, default=0.3, help="of the reweighted split (default: 0.3)"
    )
    parser.add_argument(
        "--boxes", action="store_true", help="remove whole boxes, even where outlines are known"
    )
    parser.add_argument("--batch_size", type=cli.whole_number(1), help="images, instead of the checkpoint's")
    detect.add_flag(parser)
    return parser


def _share(text):
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share above 0 and at most 1")
    return share


def _measure(flags) -> None:
    opened = opening.open(flags.checkpoint, batch_size=flags.batch_size)
    config = opened.config
    if config.task == "single_label":
        raise InputError(
            f"{opened.path} is single-label: {config.data.source} has no co-occurrence to rely on"
        )
    if flags.root is not None:
        config = configs.replaced(config, {"data.root": flags.root})
    if flags.split is None:
        configs.require_splits(config.data)
    split = flags.split or config.data.test_splits[0]
    sources = build.open_sources(config, ("train", split), _say)
    source, training = sources[split], sources["train"].labels
    _require_classes(opened, source, split)
    pairs = _pairs(training, flags, source.class_names)
    if len(source) < FEWEST:
        raise InputError(f"{split} has {len(source)} images; {FEWEST} are needed, so name a larger --split")
    pictures = _pictures(flags, config, source, pairs, split) if flags.removals else None
    score = _scorer(opened, config)
    scores = score(source)
    _say(f"{split}: {len(source)} images scored")
    uses, weighting = protocol.uses(scores, config.effect.alphas, pairs, flags.effective_share, config.seed)
    findings = protocol.Findings(
        checkpoint=f"{_name(opened.path)}, step {opened.path.name}",
        split=split,
        images=len(source),
        pairs=protocol.named_pairs(training, pairs, source.class_names),
        effective_share=weighting.effective_share,
        correlation=weighting.correlation,
        uses={prediction.name: use for prediction, use in uses.items()},
    )
    picture = b""
    if pictures is not None:
        findings, picture = _with_removals(findings, config, score, scores, pictures, pairs)
    _write(flags.out or Path("runs", f"{_name(flags.checkpoint)}_context"), findings, picture)


def _scorer(opened, config) -> Callable[[Source], Scores]:
    """Scores the averaged weights on a source. An image that cannot be read is an error, whatever config.data.on_error."""
    parts = dataclasses.replace(opened.parts, reading=dataclasses.replace(opened.parts.reading, skip=False))
    step = scoring.score_step(config, parts, config.effect.kinds)
    return lambda source: scoring.score_readable(
        parts,
        step,
        opened.model,
        source,
        batch_size=config.evaluate.batch_size,
        weights=(AVERAGE,),
        attention=False,
    )[0][AVERAGE]


def _pictures(flags, config, source, pairs, split) -> removal.WithoutClass:
    """The pictures from which a context class is removed."""
    boxes = image_boxes.boxes_of(source, threads=config.data.threads, exif=config.data.exif)
    if boxes is None or not len(boxes.images):
        raise InputError(
            f"{split} of {config.data.source} has no boxes or outlines of objects, so none can be removed; "
            "give --removals=0 for the other measures"
        )
    contexts = sorted(set(pairs[:, 1].tolist()))
    possible = removal.possible(boxes, source.labels, contexts, flags.largest)
    chosen = removal.chosen(possible, flags.removals, np.random.default_rng(config.seed))
    if len(chosen) < FEWEST:
        names = ", ".join(source.class_names[label] for label in contexts[:3])
        raise InputError(
            f"{split} has {len(chosen)} images from which a context class ({names}, …) can be removed, and {FEWEST} are needed; "
            "give a greater --largest or --removals, or --removals=0 for the other measures"
        )
    return removal.WithoutClass(source, chosen, boxes, exif=config.data.exif, by_boxes=flags.boxes)


def _with_removals(findings, config, score, scores, pictures, pairs) -> tuple[protocol.Findings, bytes]:
    """The findings with those of the removals, and the picture sheet."""
    removals, source, alphas = pictures.removals, pictures.source, config.effect.alphas
    rows = np.array([each.image for each in removals])
    before = {prediction: logits[rows] for prediction, logits in scores.predictions(alphas).items()}
    after = score(pictures).predictions(alphas)
    _say(f"{findings.split}: {len(removals)} images scored without a class")
    entries = protocol.counted(removals, source.labels[rows], pairs, pictures.kept())
    true_moves, agreement = {}, {}
    if isinstance(source, Scenes):
        truth = score(removal.TrulyWithout(source, removals)).predictions(alphas)
        true_moves = protocol.moves(before, truth, entries, config.seed)
        falls, true_falls = (before[COMBINED] - other[COMBINED] for other in (after, truth))
        agreement = protocol.agreement_with_truth(falls, true_falls, entries, config.seed)
    findings = dataclasses.replace(
        findings,
        removals=len(removals),
        moves=_by_name(protocol.moves(before, after, entries, config.seed)),
        true_moves=_by_name(true_moves),
        agreement=agreement,
    )
    return findings, _sheet(pictures, before[COMBINED], after[COMBINED], pairs)


def _by_name(moves):
    return {prediction.name: each for prediction, each in moves.items()}


def _require_classes(opened, source, split):
    if opened.class_names is not None and list(source.class_names) != list(opened.class_names):
        raise InputError(
            f"{split} has {len(source.class_names)} classes ({', '.join(source.class_names[:3])}, …) that are not those of "
            f"checkpoint {opened.path}; measure it on its own data"
        )


def _pairs(training, flags, class_names) -> np.ndarray:
    pairs = cooccurrence.strongest_pairs(training, flags.pairs, min_images=flags.min_images)
    if not len(pairs):
        most = np.triu(cooccurrence.counts(training), 1)
        first, second = np.unravel_index(most.argmax(), most.shape)
        raise InputError(
            f"no two classes are together in {flags.min_images} training images more often than by chance; most are "
            f"{class_names[first]} and {class_names[second]}, in {most.max()}; give a lower --min_images"
        )
    return pairs


def _sheet(pictures, before, after, pairs) -> bytes:
    names, removals = pictures.class_names, pictures.removals
    old, new = probabilities(before), probabilities(after)
    places = np.linspace(0, len(removals) - 1, min(SHOWN, len(removals))).round().astype(int)
    rows = []
    for place in places.tolist():
        label = removals[place].label
        targets = sorted(pairs[pairs[:, 1] == label, 0].tolist(), key=lambda k: -old[place, k])[:FACTS]
        lines = [f"without {names[label]}: {old[place, label]:.2f} -> {new[place, label]:.2f}"]
        for target in targets:
            state = "present" if pictures.labels[place, target] else "absent"
            lines.append(f"{names[target]} ({state}): {old[place, target]:.2f} -> {new[place, target]:.2f}")
        photo, hole, filled = pictures.pictures(place)
        rows.append(sheet.Row(photo, hole, filled, lines))
    return sheet.draw(rows)


def _name(checkpoint):
    parts = [part for part in Path(str(checkpoint)).parts if part != "checkpoints"]
    return parts[-2] if len(parts) > 1 and parts[-1].isdecimal() else parts[-1]


def _write(folder: Path, findings: protocol.Findings, picture: bytes) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder} cannot be written ({error.strerror}); choose another --out") from error
    text = protocol.tables(findings)
    files.write_text(folder / "context.md", text)
    files.write_text(folder / "context.json", json.dumps(findings.to_json(), indent=1) + "\n")
    if picture:
        files.write_bytes(folder / "context.jpg", picture)
    _say(f"\n{text}\nwrote {printable(str(folder))}")


def _say(line):
    print(line, flush=True)


if __name__ == "__main__":
    cli.end(main())
