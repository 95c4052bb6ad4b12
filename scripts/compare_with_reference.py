"""Compares our numbers with those of the PyTorch reference, stage by stage and step by step.

    git clone https://github.com/xiemk/MLC-PAT
    python scripts/compare_with_reference.py --reference=MLC-PAT --model=resnet101 [--checkpoint=FILE]

The checkout (commit 4026970 was tried) is imported and run on CPU as it is: its models, its loss, its
`train`. Weights are a checkpoint's or random ones; both sides get the same photos or waves, and no
dropout.

Tolerances are measured, not chosen: PyTorch runs in float64, too, and what it differs from itself in
float32 is the rounding of a stage. Ours may differ by 10 times that; another order of summation alone
gives once to thrice. Gradients have a second kind of rounding: a unit whose input is all but zero may
be open on one side and shut on the other. Where so much is more than 5 % of the numbers and ours do
differ by more, they show nothing, and the verdict is "rounding".
With --dtype=float64 both sides run in float64, units agree, and tolerances are 1.2e-6, of gradients and
changes 1e-4, at twice the memory: what differs here is a defect. Training is best compared so.
With --dtype=bfloat16 there are distances and no verdicts.
Exit codes: 0 all stages agree; 1 one differs, or an error, told in one line.
"""

import argparse
import functools
import gc
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict

from cfmlc_jax import cli
from cfmlc_jax.causal import patches
from cfmlc_jax.classify import method as methods
from cfmlc_jax.classify import step as steps
from cfmlc_jax.data.sources import Record
from cfmlc_jax.data.views.patches import ToViews
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine import state as states
from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.torch_names import BRANCHES
from cfmlc_jax.optim import build as optim
from cfmlc_jax.optim import frozen
from cfmlc_jax.torch_weights import files, mlc_pat

# Our backbones, as the checkout calls them; `q2l_` is before both.
BACKBONES = {
    "resnet18": "resnet18",
    "resnet34": "resnet34",
    "resnet50": "resnet50",
    "resnet101": "resnet101",
    "tresnet_l": "tresnetl",
    "tresnet_l_v2": "tresnetl_v2",
}
PLAIN = ("resnet101", "tresnet_l", "tresnet_l_v2")  # that it builds without Query2Label
FILES = ("run_PAT-T.py", "run_asl.py", "src_files/models/factory.py", "src_files/utils/losses.py")
SUFFIXES = (".jpg", ".jpeg", ".png")
GRID = 2
DTYPES = ("float32", "float64", "bfloat16")
# So many values of an array's gradient and change are compared: those of all steps are kept.
SAMPLE = 4096
# Of the rounding: what another implementation may differ by.
ALLOWANCE = 10
# One rounding to float32, which parameters are stored in: nothing need agree better.
LEAST_ROUNDING = 2.0**-23
# Gradients in float64: the checkout rounds Query2Label's positions to float32, by its own formula.
FAINT = 1e-5
# What differs by more does not agree, whatever the rounding.
GREATEST_DIFFERENCE = 0.05
# Where rounding is a greater share of a gradient, the parameter is not compared.
QUIET = 0.01


# --- What is compared ---------------------------------------------------------------------------

Sampled = dict[tuple[str, ...], np.ndarray]  # values of arrays by path


@dataclass(frozen=True)
class Step:
    """One update, as either side saw it.

    loss: before it.
    settings: learning rate, beta1, beta2, epsilon, weight decay.
    gradient, change, average: of parameters (and statistics, the latter two) by our paths: the
        gradient, NaN where there is none; what changed since the start, in the model and in its average.
    """

    loss: float
    settings: np.ndarray
    gradient: Sampled
    change: Sampled
    average: Sampled


class Observed(NamedTuple):
    """What one side computes: stages in evaluation, by name, and steps of training."""

    stages: dict[str, np.ndarray]
    steps: list[Step]


class Row(NamedTuple):
    """A line of the table.

    stage: what is compared.
    shape: of it, in words.
    difference: greatest, of ours to PyTorch's.
    relative: length of the difference over PyTorch's length.
    rounding: likewise, of PyTorch's float32 to its float64.
    tolerance: of the relative difference.
    verdict: "agrees", "differs", "rounding", or "–" where none is asked for.
    """

    stage: str
    shape: str
    difference: float
    relative: float
    rounding: float
    tolerance: float
    verdict: str


def relative(x: np.ndarray, y: np.ndarray) -> float:
    """‖x − y‖ / ‖y‖ of float64 vectors; 0 of equal ones."""
    distance = np.linalg.norm(x - y)
    return float(distance / np.linalg.norm(y)) if distance else 0.0


def verdict(difference: float, tolerance: float) -> str:
    """ "agrees", "differs" or "rounding" (not to be told), of relative numbers."""
    if not difference <= tolerance:  # also when it is NaN
        return "differs"
    return "agrees" if difference <= GREATEST_DIFFERENCE else "rounding"


def compare(stage: str, shape: str, ours, theirs, exact, *, known: float = 0.0) -> Row:
    """The line of one stage.

    Args:
        stage: its name.
        shape: in words.
        ours: our numbers.
        theirs: PyTorch's, as many.
        exact: PyTorch's in float64; what theirs differ is rounding.
        known: rounding to be expected where the measured one may by chance be less.
    """
    ours, theirs, exact = (np.asarray(x, np.float64).ravel() for x in (ours, theirs, exact))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        difference = float(np.abs(ours - theirs).max())
        distance, rounding = relative(ours, theirs), relative(exact, theirs)
    tolerance = ALLOWANCE * max(rounding, known, LEAST_ROUNDING)
    return Row(stage, shape, difference, distance, rounding, tolerance, verdict(distance, tolerance))


def stage_rows(ours: Mapping, theirs: Mapping, exact: Mapping) -> list[Row]:
    """A line for each stage of evaluation. Rounding only grows from stage to stage.

    Raises:
        InputError: the sides have other stages or shapes.
    """
    rows: list[Row] = []
    for stage, numbers in theirs.items():
        if stage not in ours or ours[stage].shape != numbers.shape:
            found = list(ours[stage].shape) if stage in ours else "nothing"
            raise InputError(
                f"{stage}: the reference has {list(numbers.shape)}, ours {found}; is it another model's checkout?"
            )
        known = max((row.rounding for row in rows), default=0.0)
        shape = str(list(numbers.shape))
        rows.append(compare(stage, shape, ours[stage], numbers, exact[stage], known=known))
    return rows


def step_rows(
    ours: Sequence[Step], theirs: Sequence[Step], exact: Sequence[Step], *, known: float
) -> Iterator[Row]:
    """Lines for every update: settings, gradient, loss and changes; by group where all is new or done.

    Args:
        ours: our steps.
        theirs: PyTorch's.
        exact: PyTorch's in float64.
        known: rounding of gradients, `kinks` in float32 and `FAINT` in float64.
    """
    comparable: dict[tuple[str, ...], np.ndarray] = {}
    for i, sides in enumerate(zip(ours, theirs, exact)):
        name = f"step {i + 1}: "
        reference = sides[1]
        # Each by itself, for they are of very different sizes.
        settings = (side.settings / reference.settings for side in sides)
        yield compare(f"{name}settings", f"{len(reference.settings)} ratios", *settings)
        trained = {path: np.isfinite(values) for path, values in reference.gradient.items()}
        gradients = [side.gradient for side in sides]
        by_group = list(_grouped(f"{name}gradient of ", gradients, trained, known=known))
        yield from (by_group if i == 0 else _together(f"{name}gradient", gradients, trained, known=known))
        head = max(row.rounding for row in by_group if " head" in row.stage)
        yield compare(f"{name}loss", "1 number", *(side.loss for side in sides), known=head)
        comparable = _above_rounding(comparable, reference.gradient, sides[2].gradient, known)
        yield from _change_rows(name, sides, comparable, known, by_group=i == len(theirs) - 1)


def kinks(rows: Sequence[Row], last_map: np.ndarray) -> float:
    """Relative rounding of gradients by units that are open on one side and shut on the other.

    One such unit among the n of the smallest map moves them by about 1/√n, and with a forward
    rounding of r there is one among 1/r. Few are rare: the measured rounding may lack them.
    """
    return max(max(row.rounding for row in rows) ** 0.5, last_map.size**-0.5)


def _change_rows(name, sides, comparable, known, *, by_group):
    for kind in ("change", "average"):
        changes = [getattr(side, kind) for side in sides]
        what = f"{name}change of {'averaged ' if kind == 'average' else ''}"
        statistics = {p: np.ones(x.shape, bool) for p, x in changes[1].items() if p not in comparable}
        yield from _together(f"{what}parameters", changes, comparable, known=known)
        yield from _together(f"{what}statistics", changes, statistics)
        if by_group and kind == "change":
            yield from _grouped(what, changes, comparable, known=known)


def _above_rounding(before, gradient, exact, known):
    """Masks of parameters whose gradient never was mostly rounding, or that have none.

    Adam makes whole steps of any gradient. The known rounding is spread evenly over an array.
    """
    masks = {}
    for path, values in gradient.items():
        rounding = np.abs(values - exact[path]) / QUIET
        spread = ALLOWANCE * known * np.sqrt(np.mean(np.square(values)))
        drowned = np.abs(values) < np.maximum(rounding, spread)
        masks[path] = ~drowned & before.get(path, True)
    return masks


def _grouped(name, sides, masks, *, known=0.0) -> Iterator[Row]:
    for group in dict.fromkeys(map(group_of, masks)):
        members = {path: mask for path, mask in masks.items() if group_of(path) == group}
        yield from _together(name + group, sides, members, known=known)


def _together(name, sides, masks, *, known=0.0) -> Iterator[Row]:
    """One line for the masked values of all arrays; none without such."""
    if any(mask.any() for mask in masks.values()):
        vectors = [np.concatenate([side[path][mask] for path, mask in masks.items()]) for side in sides]
        yield compare(name, f"{len(vectors[0])} numbers", *vectors, known=known)


def group_of(path: tuple[str, ...]) -> str:
    """What a parameter is told under: "stem", "layer1" … or "head" and its part."""
    _, half, module, *_ = path
    if half == "head":
        return f"head {module}"
    return module.partition("_")[0] if module.startswith("layer") else "stem"


def sample(tree: Mapping[str, Any]) -> Sampled:
    """Of every array, by path, all values or `SAMPLE` at places that depend on its size alone."""
    return {path: _some(np.asarray(array).ravel()) for path, array in flatten_dict(tree).items()}


def _some(values):
    if values.size <= SAMPLE:
        return values.astype(np.float64)
    return values[np.random.default_rng(values.size).integers(0, values.size, SAMPLE)].astype(np.float64)


def table(rows: Sequence[Row]) -> str:
    """The lines as a Markdown table; "rounding" is PyTorch's own."""
    header = ("stage", "shape", "max abs difference", "relative", "rounding", "tolerance", "verdict")
    cells = [
        (
            row.stage,
            row.shape,
            f"{row.difference:.1e}",
            f"{row.relative:.1e}",
            f"{row.rounding:.1e}",
            f"{row.tolerance:.1e}",
            row.verdict,
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in (header, *cells)) for i in range(len(header))]
    rule = tuple("-" * width for width in widths)
    return "\n".join(
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |"
        for line in (header, rule, *cells)
    )


def summary(rows: Sequence[Row]) -> str:
    """The verdicts in one line."""
    differing = [row.stage for row in rows if row.verdict == "differs"]
    drowned = sum(row.verdict == "rounding" for row in rows)
    if all(row.verdict == "–" for row in rows):
        return "distances without verdicts"
    text = f"{sum(row.verdict == 'agrees' for row in rows)} of {len(rows)} stages agree"
    if drowned:
        text += f"; {drowned} show nothing, for PyTorch's own rounding is too large: try --dtype=float64"
    return text + (f"; first to differ: {differing[0]}" if differing else "")


# --- Our side -----------------------------------------------------------------------------------


class Recorded(NamedTuple):
    """State of an optimiser that remembers the gradient it was given."""

    gradient: Any
    inner: Any


def recording(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The same optimiser, with the last gradient in its state."""

    def init(params):
        return Recorded(jax.tree.map(jnp.zeros_like, params), optimizer.init(params))

    def update(gradient, recorded, params=None):
        updates, inner = optimizer.update(gradient, recorded.inner, params)
        return updates, Recorded(gradient, inner)

    return optax.GradientTransformation(init, update)


def _without_dropout(call, arguments, options, context):
    if isinstance(context.module, nn.Dropout):
        return arguments[0]
    return call(*arguments, **options)


def evaluate(model, variables, views: np.ndarray, *, attention: str) -> dict[str, np.ndarray]:
    """Our stages of views [b, v, s, s, 3], float64, as `Reference.evaluate` tells its own."""

    @jax.jit
    def run(variables, views):
        outputs = model.apply(variables, steps.in_unit_range(views), train=False)
        weights, score = methods.patch_evidence(outputs)
        return outputs, patches.patch_logits(weights, score)

    outputs, pooled = run(variables, views)
    logits = {name: getattr(outputs, "score" if name == "patch" else name) for name in BRANCHES[attention]}
    stages = outputs.features | {f"{name} logits": x for name, x in logits.items()}
    return {
        stage: np.asarray(x, np.float64) for stage, x in (stages | {"pooled patch logits": pooled}).items()
    }


def train(model, variables, batches, *, attention: str, recipe) -> list[Step]:
    """Our steps of training by `classify.step`, on one device, from these variables.

    Args:
        model: a classifier.
        variables: {"params", "batch_stats"}, numpy arrays.
        batches: (views [b, v, s, s, 3], labels [b, k]) of every step.
        attention: of the model.
        recipe: the module with the reference's constants.
    """
    method = methods.create("whole" if attention == "none" else "pat_t", gamma_neg=4, gamma_pos=0, clip=0.05)
    optimizer = recording(
        optim.adamw_one_cycle(
            max_lr=recipe.LEARNING_RATE,
            total_steps=recipe.EPOCHS * recipe.STEPS_PER_EPOCH,
            pct_start=recipe.PCT_START,
            weight_decay=recipe.WEIGHT_DECAY,
            trainable=functools.partial(frozen.trainable, frozen=model.frozen),
        )
    )
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]).reshape(1, 1), (meshes.DATA, meshes.FSDP))
    state = _fresh_state(optimizer, variables, steps.tallied(method.loss_names))
    shardings = meshes.state_shardings(state, mesh)
    update = steps.train_step(
        model,
        optimizer,
        method,
        ema_decay=recipe.EMA_DECAY,
        log_every=1,
        seed=0,
        mesh=mesh,
        shardings=shardings,
    )
    seen = []
    for views, labels in batches:
        views = views if method.train_patches else views[:, :1]
        with nn.intercept_methods(_without_dropout):
            state, _ = update(state, {"views": views, "labels": labels})
        seen.append(_step_of(state, variables))
    return seen


def _fresh_state(optimizer, variables, tallied):
    return states.TrainState(
        step=jnp.int32(0),
        variables=jax.tree.map(jnp.array, variables),
        average=jax.tree.map(jnp.array, variables),
        opt_state=optimizer.init(variables["params"]),
        mean_colour=jnp.zeros(3),
        tally={name: jnp.zeros(()) for name in (*tallied, "steps")},
    )


def _step_of(state, start):
    used = state.opt_state.inner.hyperparams

    def since_start(tree):
        return sample(jax.tree.map(lambda now, then: np.asarray(now) - then, tree, start))

    return Step(
        loss=float(state.tally["loss"]),
        settings=np.array([used[name] for name in ("learning_rate", "b1", "b2", "eps", "weight_decay")]),
        gradient=sample({"params": state.opt_state.gradient}),
        change=since_start(state.variables),
        average=since_start(state.average),
    )


# --- What both sides get ------------------------------------------------------------------------


def waves(batch: int, size: int, *, seed: int) -> np.ndarray:
    """Views uint8 [batch, v, size, size, 3]: in every channel four plane waves of 1 to 12 cycles."""
    shape = (batch, 1 + GRID**2, 3, 4, 1, 1)
    generator = np.random.default_rng(seed)
    vertical, horizontal = generator.uniform(-12, 12, (2, *shape))
    phase, amplitude = generator.uniform(0, 1, (2, *shape))
    place = np.arange(size) / size
    angle = 2 * np.pi * (vertical * place[:, None] + horizontal * place[None, :] + phase)
    pixels = 127.5 + 127.5 * (amplitude * np.cos(angle)).sum(axis=3) / 4
    return np.rint(np.moveaxis(pixels, 2, -1)).astype(np.uint8)


def photos(folder: Path, batch: int, size: int, step: int) -> np.ndarray:
    """Views uint8 [batch, v, size, size, 3] of a step's photos, by name, from the first again after the last.

    Raises:
        InputError: no folder, no photos in it, or one that cannot be decoded.
    """
    if not folder.is_dir():
        raise InputError(f"--images={folder} is not a folder; name one of photos or leave the flag out")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES)
    if not paths:
        raise InputError(f"--images={folder} has no file {', '.join(SUFFIXES)}; name a folder of photos")
    to_views = ToViews(size, GRID)
    chosen = [paths[(step * batch + i) % len(paths)] for i in range(batch)]
    records = [Record(image=path.read_bytes(), labels=np.zeros(0), id=str(path)) for path in chosen]
    return np.stack([to_views(record)["views"] for record in records])


def make_views(flags, step: int) -> np.ndarray:
    """Views float32 [b, v, s, s, 3] in [0, 1] of a step; those of step 0 are evaluated."""
    if flags.images:
        pixels = photos(Path(flags.images), flags.batch, flags.size, step)
    else:
        pixels = waves(flags.batch, flags.size, seed=flags.seed * 1000 + step)
    return np.asarray(steps.in_unit_range(pixels))


def make_batches(flags, num_classes: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(views [b, v, s, s, 3] in [0, 1], labels [b, k]) of every step of training, float32."""
    batches = []
    for step in range(flags.train_steps):
        labels = np.random.default_rng([flags.seed, step]).random((flags.batch, num_classes)) < 0.2
        batches.append((make_views(flags, step), labels.astype(np.float32)))
    return batches


# --- The command --------------------------------------------------------------------------------


def reference_name(name: str) -> str:
    """What the checkout calls a model of ours.

    Raises:
        InputError: it has no such model.
    """
    prefix = catalogue.QUERY2LABEL if name.startswith(catalogue.QUERY2LABEL) else ""
    backbone = name.removeprefix(prefix)
    known = [*PLAIN, *(catalogue.QUERY2LABEL + name for name in BACKBONES)]
    if name not in known:
        raise InputError(f"model {name!r} is not one that MLC-PAT builds: {', '.join(known)}")
    return prefix + BACKBONES[backbone]


def check_checkout(folder: Path) -> Path:
    """The absolute folder, if it is a checkout of MLC-PAT.

    Raises:
        InputError: it lacks one of `FILES`.
    """
    for file in FILES:
        if not (folder / file).is_file():
            raise InputError(
                f"--reference={folder} is not a checkout of MLC-PAT: {file} is not there; "
                "git clone https://github.com/xiemk/MLC-PAT and name that folder"
            )
    return folder.resolve()


def check_torch(installed: bool) -> None:
    """Pass if PyTorch is there.

    Raises:
        InputError: it is not.
    """
    if not installed:
        raise InputError("the reference needs PyTorch, the CPU build will do; pip install 'cfmlc_jax[torch]'")


class Subject(NamedTuple):
    """What is compared: a model's name, classes and attention, and its weights as PyTorch's and as ours."""

    name: str
    num_classes: int
    attention: str
    state_dict: dict[str, np.ndarray]
    variables: dict[str, Any]


def _from_checkpoint(flags) -> Subject:
    state_dict, _ = mlc_pat.unwrapped(files.read_torch(Path(flags.checkpoint)).weights)
    found = mlc_pat.architecture(flags.model, state_dict)
    for flag, given, stored in (
        ("classes", flags.classes, found.num_classes),
        ("attention", flags.attention, found.attention),
    ):
        if given not in (None, stored):
            raise InputError(f"--{flag}={given}, but {flags.checkpoint} has {stored}; leave the flag out")
    if found.head not in ("linear", "query2label"):
        raise InputError(
            f"{flags.checkpoint} has the head {found.head or 'none'}, which MLC-PAT does not build"
        )
    variables = mlc_pat.from_torch(flags.model, state_dict)
    return Subject(flags.model, found.num_classes, found.attention, state_dict, variables)


def _at_random(flags, create) -> Subject:
    from compare_with_reference_torch import fill

    num_classes, attention = flags.classes or 80, flags.attention or "cross"
    state_dict = fill(create(num_classes, attention).model, seed=flags.seed)
    variables = mlc_pat.from_torch(flags.model, state_dict)
    return Subject(flags.model, num_classes, attention, state_dict, variables)


def observe_reference(reference, subject: Subject, views, batches, *, exact: bool) -> Observed:
    """What the checkout computes, in float64 if `exact`, told by our paths.

    Args:
        reference: the checkout's model.
        subject: its weights.
        views: to evaluate.
        batches: to train on.
        exact: in float64.
    """
    print(f"MLC-PAT in {'float64' if exact else 'float32'} …", file=sys.stderr, flush=True)
    reference.load(subject.state_dict, exact=exact)
    to_ours = functools.partial(mlc_pat.from_torch, subject.name, in_place_norms=False)
    stages = reference.evaluate(views)
    if batches:
        reference.start_training()
    seen = []
    for views, labels in batches:
        settings = reference.settings()
        loss = reference.step(views, labels)
        gradient = to_ours(reference.gradient())["params"]
        change, average = (sample(to_ours(x)) for x in (reference.change(), reference.change_of_average()))
        seen.append(Step(loss, settings, sample({"params": gradient}), change, average))
    return Observed(stages, seen)


def observe(subject: Subject, views, batches, *, size: int, dtype: str, recipe) -> Observed:
    """What we compute, in float64 or with float32 parameters."""
    print(f"cfmlc_jax in {dtype} …", file=sys.stderr, flush=True)
    attention, variables = subject.attention, subject.variables
    if dtype == "float64":
        variables = _in_float64(subject)
        views, batches = _as_float64(views), [(_as_float64(x), _as_float64(y)) for x, y in batches]
    # Float32 in earnest on accelerators, too.
    with jax.enable_x64(dtype == "float64"), jax.default_matmul_precision("highest"):
        model = catalogue.create_model(
            subject.name, subject.num_classes, attention=attention, image_size=size, dtype=jnp.dtype(dtype)
        )
        stages = evaluate(model, variables, views, attention=attention)
        seen = train(model, variables, batches, attention=attention, recipe=recipe) if batches else []
    return Observed(stages, seen)


def _as_float64(x):
    return np.asarray(x, np.float64)


def _in_float64(subject):
    """Our variables, with the scales of in-place norms as float64 has them."""

    def widen(used, stored):
        return np.abs(_as_float64(stored)) + 1e-5 if (used != stored).any() else _as_float64(used)

    stored = mlc_pat.from_torch(subject.name, subject.state_dict, in_place_norms=False)
    return jax.tree.map(widen, subject.variables, stored)


def run(flags, checkout: Path) -> list[Row]:
    """All lines of the comparison.

    Raises:
        InputError: a checkpoint, a folder of images or a checkout that cannot be used.
    """
    import compare_with_reference_torch as torch_side

    def create(num_classes, attention):
        return torch_side.Reference(
            checkout, reference_name(flags.model), num_classes, attention=attention, size=flags.size
        )

    subject = _from_checkpoint(flags) if flags.checkpoint else _at_random(flags, create)
    views, batches = make_views(flags, 0), make_batches(flags, subject.num_classes)

    def observed(exact):
        gc.collect()  # the last one's optimiser and schedule refer to each other
        reference = create(subject.num_classes, subject.attention)
        return observe_reference(reference, subject, views, batches, exact=exact)

    # One after the other: a training state of each is a multiple of the model.
    exact = observed(True)
    theirs = exact if flags.dtype == "float64" else observed(False)
    gc.collect()
    ours = observe(subject, views, batches, size=flags.size, dtype=flags.dtype, recipe=torch_side)
    rows = stage_rows(ours.stages, theirs.stages, exact.stages)
    known = FAINT if theirs is exact else kinks(rows, theirs.stages["layer4"])
    rows += step_rows(ours.steps, theirs.steps, exact.steps, known=known)
    return [row._replace(verdict="–") for row in rows] if flags.dtype == "bfloat16" else rows


class _Parser(argparse.ArgumentParser):
    def error(self, message):
        raise InputError(f"{message}; see --help")


def _count(least):
    def number(text):
        value = int(text)
        if value < least:
            raise ValueError
        return value

    number.__name__ = f"number of at least {least}"  # argparse names the type in its message
    return number


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The flags, checked.

    Raises:
        InputError: a flag that cannot be used.
    """
    parser = _Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", required=True, help="a checkout of MLC-PAT")
    parser.add_argument("--model", required=True, help="a name in cfmlc_jax/models/catalogue.py")
    parser.add_argument("--checkpoint", default="", help="PyTorch weights (default: random ones)")
    parser.add_argument("--size", type=_count(1), default=128, help="side of a view (default: %(default)s)")
    parser.add_argument("--classes", type=_count(1), help="(default: the checkpoint's, or 80)")
    parser.add_argument("--attention", choices=BRANCHES, help="(default: the checkpoint's, or cross)")
    parser.add_argument("--batch", type=_count(1), default=2, help="images (default: %(default)s)")
    parser.add_argument(
        "--train-steps",
        type=_count(0),
        default=5,
        help="compared (default: %(default)s)",
    )
    parser.add_argument("--seed", type=_count(0), default=0, help="of weights, waves and labels")
    parser.add_argument("--images", default="", help="folder of photos (default: waves)")
    parser.add_argument("--dtype", choices=DTYPES, default="float32", help="of the computation")
    flags = parser.parse_args(arguments)
    catalogue.parts(flags.model)  # which knows what is misspelt
    reference_name(flags.model)
    catalogue.create_model(flags.model, 1, attention="none", image_size=flags.size)
    return flags


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    cli.tolerate_every_name()
    try:
        flags = parse(arguments)
        checkout = check_checkout(Path(flags.reference))
        check_torch(importlib.util.find_spec("torch") is not None)
        rows = run(flags, checkout)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{flags.model}, {flags.batch} images of {1 + GRID**2} views of {flags.size} px, {flags.dtype}\n")
    print(table(rows))
    print(f"\n{summary(rows)}")
    return int(any(row.verdict == "differs" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
