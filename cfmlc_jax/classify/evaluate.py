"""Scores of whole splits, every image exactly once, and the report of a full evaluation."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import jax
import numpy as np
import optax

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax import files
from cfmlc_jax.classify import boxes, build, examples, tasks
from cfmlc_jax.classify import step as steps
from cfmlc_jax.classify.build import Setup
from cfmlc_jax.classify.multi_label import WEIGHTS_TEXT, ManyLabels
from cfmlc_jax.classify.single_label import OneLabel
from cfmlc_jax.classify.tasks import Task
from cfmlc_jax.data.pipeline import evaluation_batches, why_unreadable
from cfmlc_jax.data.sources import Source
from cfmlc_jax.data.sources.selected import Selected
from cfmlc_jax.data.unreadable import Unreadable
from cfmlc_jax.engine import hooks, memory
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.errors import InputError
from cfmlc_jax.results import evidence
from cfmlc_jax.results.evidence import Evidence
from cfmlc_jax.results.scores import Scores

WEIGHTS = tuple(WEIGHTS_TEXT)
# Why a report of one label an image has no company.
ALONE = "every image has one label"
# Attention as trained and as evaluated where the evaluation has fewer branches: patches are then
# weighed by their own scores, or judged by the whole's branch. Names of branches that change.
_FEWER = {("cross", "self"): {"patch": "score"}, ("cross", "none"): {}, ("self", "none"): {}}


def score_split(
    parts: Setup, score: Callable, model: dict, source: Source, *, batch_size: int
) -> dict[str, Scores]:
    """Scores of the weights and of their average on a split, read once for both (`score_readable`)."""
    return score_readable(parts, score, model, source, batch_size=batch_size)[0]


def score_readable(
    parts: Setup,
    score: Callable,
    model: dict,
    source: Source,
    *,
    batch_size: int,
    unreadable: Unreadable | None = None,
    poll: Callable[[], None] = lambda: None,
) -> tuple[dict[str, Scores], Source]:
    """Scores of the weights and of their average on a split, read once for both, and what was scored.

    That is the split itself, or with `parts.reading.skip` those of its images that can be read.

    Args:
        parts: mesh, reading and transforms.
        score: a compiled `step.score_step`.
        model: {"variables", "average", "mean_colour"}.
        source: the split.
        batch_size: images, over all devices.
        unreadable: takes note of the images that are left out.
        poll: called before every batch.

    Raises:
        InputError: an image that cannot be read, or none that can.
    """
    batches = evaluation_batches(
        source, parts.views_of["evaluate"], batch_size=batch_size, reading=parts.reading
    )
    variables = {"weights": model["variables"], "average": model["average"]}
    found: dict[str, list] = {name: [] for name in WEIGHTS}
    positions = []
    for batch in batches:
        poll()
        on_devices = meshes.to_devices(batch, parts.mesh)
        for name in WEIGHTS:
            found[name].append(score(variables[name], model["mean_colour"], on_devices["views"]))
        positions.append(steps.gather(on_devices["index"], parts.mesh))
    order, kept = _places(np.concatenate([np.asarray(p) for p in positions]))
    if len(kept) < len(source):
        assert parts.reading.skip, "an image was not scored"
        missing = np.setdiff1d(np.arange(len(source)), kept)
        if unreadable is not None:
            unreadable.add(missing)
        if not len(kept):
            reason = why_unreadable(source, parts.views_of["evaluate"], 0)
            raise InputError(f"none of the {len(source)} images can be read, the first: {reason}")
        source = Selected(source, kept)
    return {name: _scores(found[name], order, source.labels) for name in WEIGHTS}, source


def evaluate_checkpoint(path: Path, config, folder: Path, say: Callable[[str], None]) -> dict:
    """Results of a checkpoint on its test splits (`full_evaluation`).

    Args:
        path: a checkpoint.
        config: what to evaluate and how; None for the checkpoint's own. Its model may have fewer
            branches for patches than were trained, by `method` and `patches.branches`.
        folder: where the report goes.
        say: prints a line for the user.

    Raises:
        InputError: a checkpoint that cannot be read or is of another model or other classes.
    """
    meta = checkpoints.read_meta(path)
    checkpoints.require_head(path, meta)
    stored = configs.from_json(meta["config"])
    config = stored if config is None else config
    configs.require_splits(config.data)
    old, new = _of_variables(stored), _of_variables(config)
    branches = old["patches.branches"], new["patches.branches"]
    if branches in _FEWER:
        old["patches.branches"] = new["patches.branches"]
    changes = configs.differences(old, new)
    if changes:
        raise InputError(f"checkpoint {path} is of another model ({'; '.join(changes)})")
    sources = build.open_sources(config, config.data.test_splits, say)
    class_names = _class_names(path, meta, sources, say)
    parts = build.create_setup(config, len(class_names))
    _, abstract = build.state_plan(config, parts, optax.identity())
    model = _read_model(path, abstract.parts()[0], branches)
    mine = folder if jax.process_index() == 0 else None
    # One process ends by itself at SIGTERM; of several, jax.distributed catches it.
    preemption = hooks.Preemption()
    counts = meta.get("class_counts")
    if config.task == "single_label" and counts is not None:
        training, missing = None, ALONE
    else:
        training, missing = _training_labels(config, sources, class_names, say)
    return full_evaluation(
        config,
        parts,
        model,
        sources,
        class_names,
        mine,
        say,
        training_labels=training,
        class_counts=counts,
        missing=missing,
        checkpoint=path.name,
        poll=lambda: preemption.end(f"checkpoint {path.name} is not evaluated"),
    )


def _read_model(path, abstract, branches):
    """The checkpoint's arrays, without the branches that the evaluation does not have."""
    if branches not in _FEWER:
        return checkpoints.read_model(path, abstract)
    names = _FEWER[branches]
    found = checkpoints.read_part(path, _renamed(abstract, names))
    return _renamed(found, {stored: wanted for wanted, stored in names.items()})


def _renamed(tree, names):
    """Nested dicts with some of the keys under other names."""
    if not isinstance(tree, dict):
        return tree
    return {names.get(key, key): _renamed(value, names) for key, value in tree.items()}


def _training_labels(config, sources, class_names, say):
    """Labels [n, k] of the training split and "", or None and why the data on hand does not give them."""
    try:
        source = sources.get("train") or build.open_sources(config, ("train",), say)["train"]
    except InputError as error:
        missing = f"the training split cannot be read: {error}"
    else:
        if list(source.class_names) == list(class_names):
            return source.labels, ""
        missing = f"the training split at hand has other classes: {_some(list(source.class_names))}"
    say(f"without {_of_training(config)}, for {missing}")
    return None, missing


def _of_training(config):
    """What only the training split's labels give."""
    return "accuracy by shots" if config.task == "single_label" else "co-occurrence"


def _of_variables(config):
    """The fields that decide which variables there are, and what they mean."""
    others = ("dtype", "norm_groups", "frozen", "cosine.momentum", "dot_product.tau_norm")
    fields = {
        f"model.{name}": value
        for name, value in configs.flat(configs.to_json(config.model)).items()
        if name not in others
    }
    return fields | {
        "data.normalise": config.data.normalise,
        "patches.branches": configs.branches(config),
        "patches.map": configs.patch_map(config),
        "patches.pooling": config.patches.pooling,
    }


def _class_names(path, meta, sources, say):
    """The checkpoint's class names; the data's, where a converted one does not know its own."""
    known = meta["class_names"]
    if known is None:
        say(f"{path} does not name its classes: taken to be those of the data, in their order")
    for split, source in sources.items():
        found = list(source.class_names)
        if known is None and len(found) == checkpoints.num_classes(meta):
            known = found
        if found != known:
            own = _some(known) if known else checkpoints.num_classes(meta)
            raise InputError(
                f"{split} has the classes {_some(found)}, the checkpoint {path} {own}; "
                "evaluate on data with the same classes"
            )
    return known


def _some(names):
    return f"{len(names)} ({', '.join(names[:3])}, …)"


def full_evaluation(
    config,
    parts: Setup,
    model: dict,
    sources: dict,
    class_names,
    folder: Path | None,
    say: Callable[[str], None],
    *,
    training_labels: np.ndarray | None,
    class_counts: Sequence[int] | np.ndarray | None = None,
    missing: str = "",
    checkpoint: str,
    poll: Callable[[], None] = lambda: None,
) -> dict:
    """Every metric of every prediction on every split; tables to the user, files to the folder.

    Intervals, company and localisation (or, of one label an image, the rule of thumb for alpha) are of
    the averaged weights. Files: results.json (all
    numbers), results.md (the tables), per_class_<split>_<weights>.csv, scores_<split>_<weights>.npz
    (the logits, so that any alpha can be read off later) and evidence.json (what else a report
    shows).

    Args:
        config: what to evaluate, and how.
        parts: of the run.
        model: as in `score_split`.
        sources: by split.
        class_names: in label order.
        folder: where files go; None writes nothing.
        say: prints a line for the user.
        training_labels: [n, k], for the company that was learnt; None leaves it out.
        class_counts: training images [k] of each class, for images of one label; None: those of the
            training labels.
        missing: why there are none.
        checkpoint: its name, for the report.
        poll: called before everything that takes long.
    """
    score = score_step(config, parts, tuple(config.effect.kinds))
    task = tasks.create(
        config,
        training_labels=training_labels,
        class_counts=class_counts,
        num_classes=len(class_names),
    )
    model = build.as_evaluated(config, model)
    shown: dict[str, dict] = {}
    results: dict[str, dict] = {}
    for split, source in sources.items():
        unreadable = Unreadable(source, parts.views_of["evaluate"])
        with memory.needed_for("evaluation", config, "evaluate"):
            scores, source = score_readable(
                parts,
                score,
                model,
                source,
                batch_size=config.evaluate.batch_size,
                unreadable=unreadable,
                poll=poll,
            )
        for line in unreadable.report():
            say(f"{split}: {line}")
        say(f"{split}: {len(source)} images scored, each once")
        results[split] = {}
        for name, of_weights in scores.items():
            results[split][name] = task.measure(of_weights, config.effect.alphas)
            if folder is not None:
                table = task.per_class_csv(of_weights, config.effect.alphas, class_names)
                files.write_text(folder / f"per_class_{split}_{name}.csv", table)
                _write_scores(folder / f"scores_{split}_{name}.npz", of_weights)
        poll()
        found_boxes = boxes.boxes_of(source, threads=parts.reading.threads, exif=config.data.exif)
        results[split]["average"] |= task.findings(
            config, scores["average"], found_boxes, parts.cells(), class_names
        )
        shown[split] = examples.choose(
            scores["average"], source, found_boxes, exif=config.data.exif, task=task
        )
    summary = task.summary(results)
    if folder is not None:
        brief = Evidence(
            config=configs.to_json(config),
            checkpoint=checkpoint,
            class_names=list(class_names),
            training=task.training if isinstance(task, ManyLabels) else None,
            missing=missing or (ALONE if isinstance(task, OneLabel) else ""),
            class_counts=_counts(task),
            cells=_relative_cells(parts),
            exhibits=shown,
        )
        evidence.write(folder / evidence.FILE, brief)
        files.write_text(folder / "results.json", json.dumps(results, indent=1) + "\n")
        files.write_text(folder / "results.md", f"# Results\n\n{summary}\n\n{task.details(results)}\n")
    say(f"\n{summary}")
    return results


def _counts(task: Task) -> list[int] | None:
    """Training images of each class, where the report orders classes by them and they are known."""
    if not isinstance(task, OneLabel) or np.isnan(task.class_counts).any():
        return None
    return [int(count) for count in task.class_counts]


def _relative_cells(parts: Setup):
    """Boxes of the patches as fractions of the picture; None without patches."""
    found, size = parts.cells(), parts.views_of["evaluate"].size
    return None if found is None else [[side / size for side in cell] for cell in found]


def score_step(config, parts: Setup, kinds: Iterable[str]):
    """The compiled scores of one batch, with the counterfactuals of these kinds."""
    return steps.score_step(
        parts.model,
        parts.method,
        kinds=tuple(kinds),
        null=config.effect.null,
        patches=parts.patches["evaluate"],
        mesh=parts.mesh,
    )


def _scores(batches, order, labels):
    """What the score step gave for all batches, in the source's order."""
    logits = {key: np.concatenate([np.asarray(batch[key]) for batch in batches])[order] for key in batches[0]}
    attention, cosine = logits.pop("attention", None), logits.pop("cosine", None)
    if attention is not None:
        # The largest array of all by far, and good for its softmax only.
        attention = attention.astype(np.float16)
    return Scores(logits=logits, labels=labels, attention=attention, cosine=cosine)


def _places(positions):
    """Where each image's row is among the gathered ones, and the images; blank records (−1) are nowhere."""
    rows = np.flatnonzero(positions >= 0)
    images, places = np.unique(positions[rows], return_index=True)
    assert len(images) == len(rows), "an image was scored twice"
    return rows[places], images


def _write_scores(path, scores):
    arrays = scores.logits | {"labels": scores.labels}
    if scores.attention is not None:
        arrays["attention"] = scores.attention
    files.write_npz(path, **arrays)
