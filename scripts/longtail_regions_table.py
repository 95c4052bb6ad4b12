"""Average precision of boxes on long-tailed regions over seeds: plain, cosine, De-confound, and their effects.

    python -m scripts.longtail_regions_table [--seeds=3] [--workdir=runs/longtail_regions] [FLAG=VALUE …]

Trains a small network on digit scenes in which digits are equally frequent (configs/scenes.py:whole), which then stays as it
is: its maps give the features of regions. For every seed it writes records of training scenes in which digit 0 is frequent and
digit 9 rare, and trains configs/longtail_lvis.py:scenes_VARIANT on them for every variant. Finished parts are not repeated;
a workdir of other flags is refused.
Of each effect the strength has the highest AP on the validation scenes, averaged over the seeds. Prints
a Markdown table of AP on the test scenes, mean ± deviation over the seeds, and writes it to WORKDIR/table.md. Further
arguments are flags of python -m cfmlc_jax.main, such as --config.train.epochs=5. Exit code 1: a run failed and printed why.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cfmlc_jax import cli, files
from cfmlc_jax.classify import opening
from cfmlc_jax.data.regions import records, scenes
from cfmlc_jax.data.regions.pooling import pool
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.results import read, tables
from cfmlc_jax.results.predictions import WHOLE, Prediction
from scripts import made_with
from scripts.longtail_table import ROWS, VARIANTS, has_page, parse, run_main, spread, workdir_of, write

CONFIGS = Path(__file__).parents[1] / "configs"
BACKBONE = (
    "--config.data.scenes.bias=0.0",
    "--config.data.scenes.num_train=2000",
    "--config.data.scenes.num_test=200",
    "--config.data.test_splits=('val',)",
    "--config.train.epochs=8",
)
# Maps of the network whose cells are pooled, and the grid that a region is pooled to.
MAPS, GRID = ("stem", "layer1"), 4
SIZE, CHANNELS = 64, 96
CANDIDATES, LARGEST, SMALLEST, SCORED = 6000, 600, 4, 500
METRICS = ("AP", "AP50", "APr", "APc", "APf")


@cli.command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    flags, further = parse(__doc__, "runs/longtail_regions", arguments)
    made_with.require_same(flags.workdir, further)
    done = _run(flags, further)
    if not done:
        return 1
    write(flags, table(flags))
    return 0


def _run(flags, further) -> bool:
    """Whether all parts are done."""
    backbone = flags.workdir / "backbone"
    config = f"--config={CONFIGS / 'scenes.py'}:whole"
    if not has_page(backbone) and not run_main(config, f"--workdir={backbone}", *BACKBONE):
        return False
    _write_records(flags, backbone)
    return all(_train(flags, variant, seed, further) for seed in range(flags.seeds) for variant in VARIANTS)


def _train(flags, variant, seed, further) -> bool:
    """Train a variant with a seed, and evaluate it on the test scenes, unless both are done."""
    workdir, test = workdir_of(flags, variant, seed), workdir_of(flags, variant, seed) / "test"
    data = flags.workdir / "data"
    config = f"--config={CONFIGS / 'longtail_lvis.py'}:scenes_{variant}"
    common = (config, f"--config.seed={seed}", f"--config.data.train={data / f'train-{seed}'}", *further)

    def scored(split):
        return (f"--config.data.val={data / split}", f"--config.data.annotations={data / split}.json")

    if not has_page(workdir) and not run_main(*common, *scored("val"), f"--workdir={workdir}"):
        return False
    # The one that was evaluated on val; the folder of a run alone would stand for its best.
    checkpoint = workdir / "checkpoints" / read.detections(workdir / "report").checkpoint
    return has_page(test) or run_main(
        *(*common, *scored("test"), "--mode=evaluate"), f"--checkpoint={checkpoint}", f"--workdir={test}"
    )


def _write_records(flags, backbone):
    """Write the records of all seeds, and of val and test their annotations, unless they are there."""
    data = flags.workdir / "data"
    counts = scenes.targets(LARGEST, SMALLEST)
    categories = scenes.categories(counts)
    splits: dict[str, tuple[Scenes, Any, int]] = {
        name: (source, np.arange(SCORED), 0)
        for name, source in (
            ("val", Scenes("val", bias=0.0, size=SIZE, num_scenes=SCORED)),
            ("test", Scenes("test_balanced", size=SIZE, num_scenes=SCORED)),
        )
    }
    for seed in range(flags.seeds):
        source = Scenes("train", bias=0.0, size=SIZE, num_scenes=CANDIDATES, seed=seed)
        splits[f"train-{seed}"] = source, scenes.long_tailed(source.labels, counts), seed
    missing = {name: split for name, split in splits.items() if not (data / name / records.INDEX).exists()}
    if not missing:
        return
    features = _features(backbone)
    for name, (source, chosen, seed) in missing.items():
        print(f"writing the records of {len(chosen)} scenes to {data / name}", file=sys.stderr, flush=True)
        scenes.write(
            data / name, source, chosen, categories, features, shape=(GRID, GRID, CHANNELS), seed=seed
        )
        if seed == 0:
            listed = scenes.annotations(source, chosen, categories, counts)
            files.write_text(data / f"{name}.json", json.dumps(listed))


def _features(backbone):
    """A function of an image and boxes [r, 4] -> features float32 [r, 1, GRID, GRID, CHANNELS] of the network's maps."""
    opened = opening.open(backbone)
    model, variables = opened.parts.model, opened.model["average"]

    @jax.jit
    def maps(image):
        views = image[None, None].astype(jnp.float32) / 255
        outputs: Any = model.apply(variables, views, train=False)
        return [outputs.features[name][0, 0] for name in MAPS]

    def of_regions(image, boxes):
        pooled = [pool(np.asarray(each), boxes / SIZE, GRID) for each in maps(image)]
        return np.concatenate(pooled, axis=-1)[:, None]

    return of_regions


def table(flags: argparse.Namespace) -> str:
    """AP in percent as a Markdown table, mean ± sample deviation over the seeds."""
    rows = []
    for name, variant, effect in ROWS:
        workdirs = [workdir_of(flags, variant, seed) for seed in range(flags.seeds)]
        prediction = WHOLE
        if effect:
            prediction = _best_effect([_metrics(workdir) for workdir in workdirs])
            name = f"{name}, α {prediction.alpha:g}"
        test = [_metrics(workdir / "test")[prediction] for workdir in workdirs]
        rows.append([name, *(spread([values[metric] for values in test]) for metric in METRICS)])
    return tables.markdown(
        [f"AP of boxes %, {flags.seeds} seeds", "all", "all, overlap .5", "rare", "common", "frequent"], rows
    )


def _best_effect(seeds: list[dict[Prediction, dict[str, float]]]) -> Prediction:
    """The effect of the highest AP on the validation scenes, averaged over the seeds."""
    effects = [prediction for prediction in seeds[0] if prediction.is_effect]
    return max(effects, key=lambda each: sum(seed[each]["AP"] for seed in seeds))


def _metrics(workdir) -> dict[Prediction, dict[str, float]]:
    return read.detections(workdir / "report").metrics


if __name__ == "__main__":
    sys.exit(main())
