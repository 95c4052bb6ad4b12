"""Ablations: accuracy against measured cost, over trainings, seeds and ways to use a checkpoint.

    python -m scripts.ablation --study=configs/studies/evidence.py [--quick] [--workdir=runs/evidence]
    python -m scripts.ablation --study=configs/studies/evidence.py --set=data.source=photo_scenes
    python -m scripts.ablation --checkpoint=runs/coco [--workdir=runs/coco_ablation]

A study is a Python file with `get_study(quick)`: a base configuration, seeds, and runs, each with the
fields that it changes and further evaluations ("variants") of its weights; configs/studies/evidence.py is an
example. --set changes a field in all of its runs. A run may need "steps", commands that write what it reads; configs/studies/counterfactuals.py has some.
With --checkpoint nothing is trained: the checkpoint is evaluated with other grids, overlaps,
attention, nulls, strengths and weights of the patches, on its own test splits.

Writes results.csv (a line for every prediction, split and seed), results.md (tables of means and
deviations), figures/ (needs the extra "figures") and, if objects can be removed from images,
effects.csv. Finished work is not repeated: the same command resumes. What was made with another configuration is refused.
"""

import ast
import importlib.util
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import cli, files
from cfmlc_jax import config as configs
from cfmlc_jax.config import older
from cfmlc_jax.engine import compilation
from cfmlc_jax.errors import InputError, RunError
from cfmlc_jax.results.predictions import Prediction
from scripts import made_with
from scripts.ablation import measure, tables

# Variants of using a checkpoint: fields of the evaluation. Variants that its method does not support are skipped.
KNOBS: dict[str, dict[str, Any]] = {
    "attention self": {"patches.branches": "self"},
    "attention none": {"method": "pat_i"},
    "grid 3": {"patches.grids": (3,), "patches.overlap": 0.1},
    "grid 4": {"patches.grids": (4,)},
    "grids 2 and 3": {"patches.grids": (2, 3)},
    "overlap 0.25": {"patches.overlap": 0.25},
    "overlap 0.5": {"patches.overlap": 0.5},
    "null zeros": {"effect.null": "zeros"},
    "null mean": {"effect.null": "mean"},
    "null blur": {"effect.null": "blur"},
}
ALPHAS = (0.25, 0.5, 0.75, 1.0, 1.5)
# Weights of the patch logits in the combined prediction, instead of one half. 0 and 1 would be whole and patch alone.
PATCH_WEIGHTS = (0.25, 0.75)
# Written to the folder of a run before its command.
CONFIG_FILE, LOG_FILE = "ablation_config.py", "log.txt"


@cli.command
def main() -> int:
    """Run the command line and return the exit code."""
    try:
        flags = _parse(sys.argv[1:])
        compilation.keep(None)
        _make(Path(flags.workdir))
        rows, effects = _of_checkpoint(flags) if flags.checkpoint else _of_study(flags)
        written = tables.write(Path(flags.workdir), rows, effects)
    except KeyboardInterrupt:
        print("interrupted; the same command resumes", file=sys.stderr)
        return 130
    print("\n".join(f"wrote {path}" for path in written))
    return 0


def _parse(arguments):
    parser = cli.Parser(prog="python -m scripts.ablation", description=__doc__)
    parser.add_argument("--study", type=Path, help="file with get_study(quick)")
    parser.add_argument("--checkpoint", type=files.any_path, help="a run or a checkpoint, instead of a study")
    parser.add_argument(
        "--workdir", type=files.local_path, help="output folder; default: runs/<name of the study or run>"
    )
    parser.add_argument("--quick", action="store_true", help="the study's short form")
    parser.add_argument("--only", help="names of the study's runs to execute, separated by commas")
    parser.add_argument("--seeds", help="seeds instead of the study's, separated by commas")
    parser.add_argument(
        "--set",
        dest="fields",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="field of the configuration for all runs of the study; can be repeated",
    )
    flags = parser.parse_args(arguments)
    flags.fields = dict(_field(text) for text in flags.fields)
    if (flags.study is None) == (flags.checkpoint is None):
        raise InputError("give either --study=FILE or --checkpoint=RUN")
    if flags.checkpoint and (flags.quick or flags.only or flags.seeds or flags.fields):
        raise InputError("--quick, --only, --seeds and --set need a --study; omit them with --checkpoint")
    if flags.workdir is None:
        name = flags.study.stem if flags.study else f"{flags.checkpoint.name}_ablation"
        fields = [f"{field}={value}" for field, value in flags.fields.items()]
        parts = [name, *fields, *(["quick"] if flags.quick else [])]
        flags.workdir = Path("runs", "_".join(parts).replace("/", "_"))
    return flags


def _field(text: str) -> tuple[str, Any]:
    """Name and value of a field that the command line sets: a Python literal, or else text."""
    name, equals, value = text.partition("=")
    if not (name and equals):
        raise InputError(f"--set={text}: give NAME=VALUE, such as data.source=photo_scenes")
    try:
        return name, ast.literal_eval(value)
    except (SyntaxError, ValueError):
        return name, value


def _of_study(flags):
    """Rows and effects of all runs and seeds of a study; runs that are not trained yet are trained now."""
    study = _study(flags)
    _take_steps(flags.workdir, study)
    jobs = [(name, seed) for seed in study["seeds"] for name in study["runs"]]
    rows, effects, begun = [], [], time.perf_counter()
    for i, (name, seed) in enumerate(jobs):
        print(f"\n[{i + 1}/{len(jobs)}] {name}, seed {seed}, {_minutes(begun)}", flush=True)
        run = study["runs"][name]
        fields = run["fields"] | {"seed": seed} | flags.fields
        folder = flags.workdir / "runs" / f"{name}_seed{seed}"
        config = _with(_base(study["base"]), fields)
        _run(flags.workdir, folder, config, "train")
        run_rows = _rows(
            flags.workdir, folder, config, config, tables.Row(name, run["text"], run.get("group", ""), seed)
        )
        for variant, changed in run["variants"].items():
            place = folder / "variants" / variant.replace(" ", "_").replace(",", "")
            other = _with(_base(study["base"]), fields | changed)
            _run(flags.workdir, place, other, "evaluate", checkpoint=folder)
            row = tables.Row(name, f"{run['text']}: {variant}", run.get("group", ""), seed, variant)
            run_rows += _rows(flags.workdir, place, config, other, row)
            if run.get("effects") and "effect.owners" in changed:
                measured = measure.effects(place, other, run["effects"], checkpoint=folder)
                effects += [tables.EffectRow(name, row.text, seed, **each) for each in measured]
        rows += [
            row
            for row in run_rows
            if row.prediction in run["shown"] or Prediction.parse(row.prediction).is_effect or row.variant
        ]
        if run.get("effects"):
            run_effects = measure.effects(folder, config, run["effects"])
            effects += [tables.EffectRow(name, run["text"], seed, **row) for row in run_effects]
    return rows, effects


def _take_steps(workdir: Path, study: dict[str, Any]) -> None:
    """Run the commands of the steps that the study's runs need, in the study's order, whose file does not exist yet.

    Raises:
        RunError: a command failed.
    """
    needed = {path for run in study["runs"].values() for path in run.get("needs", ())}
    for number, (path, arguments) in enumerate(study.get("steps", {}).items()):
        if path in needed and not Path(path).exists():
            _command(workdir / f"step{number}.log.txt", arguments)


def _of_checkpoint(flags):
    """Rows of one checkpoint: unchanged, with every applicable knob, and with other weights of the patches."""
    path = checkpoints.find(flags.checkpoint)
    stored = configs.to_json(configs.from_json(checkpoints.read_meta(path)["config"]))
    if stored["task"] == "single_label":
        raise InputError(
            f"{path} is single-label, without patches and null images; see accuracy over alpha in the report of its run"
        )
    made_with.require_same(flags.workdir, [f"--checkpoint={path}"])

    def evaluated(variant, config):
        place = flags.workdir / "variants" / (variant or "as it is").replace(" ", "_")
        _run(flags.workdir, place, config, "evaluate", checkpoint=path)
        head = tables.Row("checkpoint", variant or "as it is", flags.checkpoint.name, config.seed, variant)
        return place, _rows(flags.workdir, place, configs.from_json(stored), config, head)

    own = _with(configs.from_json(stored), {"effect.alphas": ALPHAS})
    place, rows = evaluated("", own)
    combined = [row for row in rows if row.prediction == "combined"]
    for knob, fields in KNOBS.items():
        try:
            config = _knob(own, fields)
        except InputError as error:
            print(f"{knob}: skipped, because {error}")
            continue
        rows += evaluated(knob, config)[1]
    if any(row.prediction == "patch" for row in rows if not row.variant):
        for weight in PATCH_WEIGHTS:
            text = f"patches weigh {weight:g}"
            rows += [
                row._replace(
                    text=text, variant=text, **measure.recombined(place / "report", row.split, weight)
                )
                for row in combined
            ]
    return rows, []


def _knob(own, fields):
    """The configuration of a knob that changes something.

    Raises:
        InputError: it changes nothing, or does not go with the checkpoint's method.
    """
    of_views = any(name in ("patches.grids", "patches.overlap") for name in fields)
    if of_views and configs.patch_map(own):
        raise InputError("its patches are cells of a map")
    if "effect.null" in fields and not {"whole", "pivot"} & set(own.effect.kinds):
        raise InputError("its evaluation has no effects against a null image")
    if of_views and own.method == "whole":
        fields = fields | {"method": "pat_i"}
    config = _with(configs.from_json(configs.to_json(own)), fields)
    if configs.to_json(config) == configs.to_json(own):
        raise InputError("it is the checkpoint's own setting")
    idle = [name for name in configs.unused(config) if name in fields]
    if idle:
        raise InputError(f"method {config.method!r} does not use config.{idle[0]}")
    return config


def _study(flags) -> dict[str, Any]:
    """The study of the file, restricted to --only and --seeds.

    Raises:
        InputError: the file does not exist, has no study, or lacks the runs of --only.
    """
    spec = importlib.util.spec_from_file_location("study", flags.study)
    if not flags.study.is_file() or spec is None or spec.loader is None:
        raise InputError(f"--study={flags.study} is not a Python file; configs/studies has some")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "get_study"):
        raise InputError(
            f"--study={flags.study} has no get_study(quick); configs/studies/evidence.py shows one"
        )
    study = module.get_study(flags.quick)
    if flags.only:
        wanted = flags.only.split(",")
        unknown = [name for name in wanted if name not in study["runs"]]
        if unknown:
            raise InputError(
                f"--only: the study has no run {unknown[0]!r}; it has {', '.join(study['runs'])}"
            )
        study["runs"] = {name: study["runs"][name] for name in wanted}
    if flags.seeds:
        if not all(seed.isdecimal() for seed in flags.seeds.split(",")):
            raise InputError(f"--seeds={flags.seeds}: give whole numbers separated by commas, such as 0,1,2")
        study["seeds"] = [int(seed) for seed in flags.seeds.split(",")]
    return study


def _base(path):
    spec = importlib.util.spec_from_file_location("base", path)
    if spec is None or spec.loader is None or not Path(path).is_file():
        raise InputError(f"the study's base configuration {path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    if config.task == "single_label":
        raise InputError(
            f"the study's base configuration {path} is single-label; studies compare mAPs, so give a multi-label one"
        )
    return config


def _with(config, fields):
    """The configuration with some fields changed, validated."""
    config.unlock()
    known = configs.flat(configs.to_json(config))
    for name, value in fields.items():
        if name not in known:
            raise InputError(
                older.moved(name, value) or f"the study sets config.{name}, which is not a field"
            )
        section, _, leaf = name.rpartition(".")
        target = config
        for part in section.split(".") if section else []:
            target = target[part]
        target[leaf] = value
    return configs.validate(config)


def _run(workdir: Path, folder: Path, config, mode: str, *, checkpoint: Path | None = None) -> None:
    """Run the main command in a separate process, which frees its memory; its output goes to folder/log.txt.

    Raises:
        InputError: the folder has results of another configuration.
        RunError: the command failed.
    """
    file = folder / CONFIG_FILE
    _require_same(folder, file, config)
    if (folder / "report" / "results.json").exists() and (folder / "report" / "index.html").exists():
        return
    _make(folder)
    files.write_text(file, _config_file(config))
    arguments = ["cfmlc_jax.main", f"--config={file}", f"--workdir={folder}", f"--mode={mode}"]
    if checkpoint is not None:
        arguments.append(f"--checkpoint={checkpoint}")
    _command(folder / LOG_FILE, arguments)


def _require_same(folder: Path, file: Path, config) -> None:
    """Raise unless all that a run has written into the folder was made with this configuration."""
    if {path.name for path in folder.glob("*")} <= {CONFIG_FILE, LOG_FILE}:
        return
    if not file.exists():
        raise InputError(f"{folder} has files, but no {CONFIG_FILE}; remove it, or give another --workdir")
    stored, wanted = (configs.flat(configs.to_json(each)) for each in (_base(file), config))
    for name, value in wanted.items():
        if stored[name] != value:
            raise InputError(
                f"{folder} was made with config.{name} {stored[name]!r}, not {value!r}; "
                "remove it to make it anew, or give another --workdir"
            )


def _command(log_file: Path, arguments: Sequence[str]) -> None:
    """Run `python -m` with these arguments; its output is appended to the file.

    Raises:
        RunError: the command failed.
    """
    line = " ".join(("-m", *arguments))
    print(f"  {line}", flush=True)
    with open(log_file, "a", encoding="utf-8") as log:
        done = subprocess.run(
            [sys.executable, "-m", *arguments], stdout=log, stderr=subprocess.STDOUT, check=False
        )
    if done.returncode:
        last = log_file.read_text(encoding="utf-8").strip().splitlines()[-1:]
        raise RunError(f"{line} ended with exit code {done.returncode}: {' '.join(last)}; see {log_file}")


def _config_file(config) -> str:
    """The text of a configuration file for this configuration."""
    fields = json.dumps(configs.to_json(config))
    return f"import json\nfrom cfmlc_jax import config as configs\ndef get_config():\n    return configs.from_json(json.loads({fields!r}))\n"


def _rows(workdir: Path, folder: Path, trained, config, head: "tables.Row") -> list["tables.Row"]:
    """A row for every prediction on every split, with the costs of training and prediction.

    `trained` is the configuration of the training, `config` that of the evaluation.
    """
    results = measure.multi_label_results(folder / "report")
    costs = workdir / "costs"
    use = f"{head.run}_{head.variant}".rstrip("_").replace(" ", "_")
    training = measure.training_gflops(costs / f"{head.run}_training.json", trained)
    prediction = measure.prediction_costs(costs / f"{use}.json", config)
    rate = _logged_rate(folder)
    rows = []
    for split, split_results in results.items():
        context, localization = split_results.findings.context, split_results.findings.localization
        for predicted, metrics in split_results.measures["average"].metrics.items():
            context_use = context.predictions[predicted] if context else None
            rows.append(
                head._replace(
                    prediction=predicted.name,
                    split=split,
                    train_gflops=training,
                    train_images_per_second=rate,
                    predict_mflops=prediction["mflops"][_work(predicted)],
                    predict_images_per_second=prediction["images_per_second"][_work(predicted)],
                    excess_fpr=context_use.excess_fpr.value if context_use else None,
                    context_auc=context_use.context_auc.value if context_use else None,
                    pivot_hit=localization.all.hit if localization else None,
                    chance_hit=localization.all.chance_hit if localization else None,
                    mAP_sklearn=metrics["mAP_sklearn"],
                    mAP_voc=metrics["mAP_voc"],
                    CF1=metrics["CF1"],
                    OF1=metrics["OF1"],
                )
            )
    return rows


def _work(prediction: Prediction) -> str:
    """The computation that a prediction needs: "factual", or a kind of counterfactual in addition."""
    return prediction.counterfactual or "factual"


def _logged_rate(folder: Path) -> float | None:
    """Median of the images per second that training logged, including input; None if nothing was trained."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return None
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    rates = [line["time/images_per_second"] for line in lines if "time/images_per_second" in line]
    return statistics.median(rates) if rates else None


def _make(folder: Path):
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written ({error.strerror}); choose another --workdir"
        ) from error


def _minutes(begun):
    return f"{(time.perf_counter() - begun) / 60:.0f} minutes so far"


if __name__ == "__main__":
    sys.exit(main())
