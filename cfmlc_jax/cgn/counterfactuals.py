"""Counterfactual records: images whose shape, texture and background have labels of their own.

As in the reference: each shape is drawn once and painted `per_shape` times, with another texture and another
background each time. Labels are uniform and independent. (The reference permutes the labels of a batch of 100.)
"""

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from cfmlc_jax import files, lock, processes
from cfmlc_jax.causal import mechanisms
from cfmlc_jax.cgn.system import draw, in_bytes
from cfmlc_jax.data.sources import counterfactuals as records
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.progress import Progress
from cfmlc_jax.errors import InputError
from cfmlc_jax.models.generators.mnist import SIZE, Composition, MnistGenerator
from cfmlc_jax.models.layers.norms import BatchNorm

# Images that are drawn at once.
_BATCH = 500
# Batches for standing statistics, their size, and the seed of their labels and noise.
_STANDING_BATCHES, _STANDING_SIZE, _STANDING_SEED = 20, 100, 0
# What an unfinished folder is being filled with.
_BEGUN = "begun.json"


def draw_inputs(key, b: int, per_shape: int, generator: MnistGenerator) -> tuple[dict, dict, dict]:
    """Labels, noise and offsets of b counterfactuals, as the generator takes them, the same shape `per_shape` times.

    Returns:
        {mechanism: int32 [b]}, {mechanism: [b, latent]}, {"texture", "background": int32 [b, 2]}.

    Args:
        key: random key.
        b: a multiple of `per_shape`.
        per_shape: images that share a shape.
        generator: for its numbers of classes and of noise values.
    """
    labels, noise, offsets = {}, {}, {}
    for name, mechanism_key in zip(mechanisms.MECHANISMS, jax.random.split(key, 3)):
        label_key, noise_key, offset_key = jax.random.split(mechanism_key, 3)
        copies = per_shape if name == mechanisms.SHAPE else 1
        label = jax.random.randint(label_key, (b // copies,), 0, generator.num_classes)
        labels[name] = jnp.repeat(label, copies)
        noise[name] = jnp.repeat(
            jax.random.normal(noise_key, (b // copies, generator.latent)), copies, axis=0
        )
        if name != mechanisms.SHAPE:
            offsets[name] = mechanisms.draw_offsets(offset_key, b, SIZE)
    return labels, noise, offsets


class Painter:
    """Draws counterfactuals on the mesh: (variables, key) -> labels int32 [b, 3], and a `Composition` of b.

    Args:
        generator: draws images.
        mesh: the devices.
        b: images per call, a multiple of `per_shape`.
        per_shape: images that share a shape.
        inputs: as `draw_inputs`: labels, and further arguments of the generator.
    """

    def __init__(
        self,
        generator: Any,
        mesh: jax.sharding.Mesh,
        b: int,
        per_shape: int = 1,
        inputs: Callable[..., tuple] = draw_inputs,
    ):
        def paint(variables, key):
            labels, *arguments = inputs(key, b, per_shape, generator)
            composed = generator.apply(variables, labels, *arguments, train=False)
            return jnp.stack([labels[name] for name in mechanisms.MECHANISMS], axis=1), composed

        replicated = meshes.replicated(mesh)
        self._paint = jax.jit(paint, out_shardings=replicated, compiler_options=meshes.compiler_options(mesh))

    def __call__(self, variables, key) -> tuple[np.ndarray, Composition]:
        """Labels and images of new counterfactuals."""
        labels, composed = self._paint(variables, key)
        return np.asarray(labels), composed


def drawing_weights(average, generator: MnistGenerator, ema_decay: float) -> dict[str, Any]:
    """The weights that draw counterfactuals, {"params", "batch_stats"}.

    Args:
        average: the averaged weights, which without averaging are the raw ones.
        generator: the module.
        ema_decay: of the average; 0: it has the statistics of training, as in the reference; otherwise it gets
            `standing_statistics`.
    """
    return standing_statistics(average, generator) if ema_decay else average


def standing_statistics(variables, generator: MnistGenerator) -> dict[str, Any]:
    """Averaged weights with batch statistics of their own: the means over many batches without intervention.

    The average over training of the raw weights' statistics does not fit the averaged weights: images that are drawn
    with it have wrong colours. (BigGAN, Brock et al., ICLR 2019, calls them standing statistics.)

    Args:
        variables: {"params", "batch_stats"} of a generator; the statistics are replaced.
        generator: the module.
    """
    empty = jax.tree.map(jnp.zeros_like, variables["batch_stats"])
    keys = jax.random.split(jax.random.key(_STANDING_SEED), _STANDING_BATCHES)
    batches = [
        _statistics(generator, {"params": variables["params"], "batch_stats": empty}, key) for key in keys
    ]
    return {
        "params": variables["params"],
        "batch_stats": jax.tree.map(lambda *each: jnp.mean(jnp.stack(each), axis=0), *batches),
    }


@functools.partial(jax.jit, static_argnums=0)
def _statistics(generator, variables, key):
    """The batch statistics of one batch. Running ones that start at 0 are the batch's times the momentum."""
    draws = draw(key, _STANDING_SIZE, generator)
    _, updated = generator.apply(
        variables,
        *(mechanisms.same_for_all(x) for x in (draws.labels, draws.noise)),
        draws.offsets,
        train=True,
        mutable=["batch_stats"],
    )
    return jax.tree.map(lambda running: running / BatchNorm.momentum, updated["batch_stats"])


def write(
    folder: Path,
    generator: Any,
    variables,
    *,
    class_names,
    num_records: int,
    per_shape: int,
    shard_size: int,
    seed: int,
    mesh: jax.sharding.Mesh,
    origin: dict[str, Any],
    print_line: Callable[[str], None],
    poll: Callable[[], None],
    inputs: Callable[..., tuple] = draw_inputs,
    image_size: int = SIZE,
    at_once: int = _BATCH,
) -> None:
    """Write a folder of counterfactual records; complete shards of an earlier call are kept, damaged ones replaced.

    A shard is a function of seed and position alone, so that a resumed call gives the same folder.

    Args:
        folder: of the records; new, or left by an interrupted call with the same arguments.
        generator: draws the images.
        variables: its weights.
        class_names: in label order.
        num_records: in all, a multiple of `per_shape`.
        per_shape: images that share a shape.
        shard_size: records in a file, a multiple of `per_shape`.
        seed: of all labels and noise.
        mesh: the devices.
        origin: where the records come from, JSON types; written to the index.
        print_line: prints a line for the user.
        poll: called between batches; it raises if the run must end.
        inputs: as in `Painter`.
        image_size: side of the images, pixels.
        at_once: images that are drawn at once.

    Raises:
        InputError: the folder holds records of other arguments.
        RunError: the files cannot be written.
    """
    b = max(per_shape, at_once // per_shape * per_shape)
    painter = Painter(generator, mesh, b, per_shape, inputs)

    def shard(number, size):
        key = jax.random.fold_in(jax.random.key(seed), number)
        return Shard(*_shard(painter, variables, key, size, b, poll))

    write_shards(
        folder,
        shard,
        class_names=class_names,
        num_records=num_records,
        shard_size=shard_size,
        image_size=image_size,
        task=records.SINGLE_LABEL,
        origin=origin | {"seed": seed, "per_shape": per_shape},
        print_line=print_line,
    )


class Shard(NamedTuple):
    """The records of a file: `records.write_shard`.

    labels: int [n, 3] of mechanisms, or of scenes 0 or 1 [n, k].
    images: uint8 [n, h, w, 3].
    boxes: of scenes, int [m, 6]; None: there are none.
    """

    labels: np.ndarray
    images: np.ndarray
    boxes: np.ndarray | None = None


def write_shards(
    folder: Path,
    draw_shard: Callable[[int, int], Shard],
    *,
    class_names,
    num_records: int,
    shard_size: int,
    image_size: int,
    task: str,
    origin: dict[str, Any],
    print_line: Callable[[str], None],
) -> None:
    """Write a folder of records of any kind; complete shards of an interrupted call are kept.

    The first process writes; in each process the folder is complete when the call returns.

    Args:
        folder: of the records; new, or left by an interrupted call with the same arguments.
        draw_shard: (number of the shard, number of records) -> the shard, the same whenever it is called.
        class_names: in label order.
        num_records: in all.
        shard_size: records in a file.
        image_size: side of the images, pixels.
        task: of the records (`records.write_index`).
        origin: what the records depend on, JSON types; written to the index.
        print_line: prints a line for the user.

    Raises:
        InputError: the folder holds records of other arguments.
        RunError: the files cannot be written.
    """
    sizes = _shard_sizes(num_records, shard_size)
    paths = [folder / records.shard_name(shard, len(sizes)) for shard in range(len(sizes))]

    def is_complete():
        if not (folder / records.INDEX).exists():
            return False
        wanted = origin | {"shards": sizes, "class_names": list(class_names)}
        _require_equal(folder, _read(folder / records.INDEX), wanted)
        return all(records.is_shard(path, size, class_names, task) for path, size in zip(paths, sizes))

    def finish():
        records.write_index(
            folder, class_names=class_names, shards=sizes, image_size=image_size, task=task, **origin
        )
        (folder / _BEGUN).unlink(missing_ok=True)

    if processes.of_first(is_complete):
        print_line(f"counterfactuals: {num_records:,} records in {folder}, complete")
        return
    primary = jax.process_index() == 0
    if primary:
        folder.mkdir(parents=True, exist_ok=True)
        _claim(folder, origin | {"shards": sizes})
    progress = Progress(len(sizes), batch_size=shard_size, silent=not primary, unit="files")
    for shard, size in enumerate(sizes):
        path = paths[shard]
        missing = primary and not records.is_shard(path, size, class_names, task)
        # Only the first process writes, and so only it knows what is there: all processes draw every shard.
        if jax.process_count() > 1 or missing:
            drawn = draw_shard(shard, size)
            if missing:
                records.write_shard(path, drawn.images, drawn.labels, boxes=drawn.boxes)
        progress.report(shard + 1, "counterfactuals")
    processes.of_first(finish)
    print_line(f"counterfactuals: {num_records:,} records in {folder}")


def _shard(painter, variables, key, size, b, poll):
    """Labels int32 [size, 3] and images uint8 [size, h, w, 3] of a shard."""
    labels, images = [], []
    for batch in range(-(-size // b)):
        poll()
        drawn, composed = painter(variables, jax.random.fold_in(key, batch))
        labels.append(drawn)
        images.append(np.asarray(in_bytes(composed.image)))
    return np.concatenate(labels)[:size], np.concatenate(images)[:size]


def _shard_sizes(num_records, shard_size):
    """The number of records in each file."""
    full, rest = divmod(num_records, shard_size)
    return [shard_size] * full + ([rest] if rest else [])


def _claim(folder, arguments):
    """Write what the folder is being filled with, or compare it with what an interrupted call wrote.

    Raises:
        InputError: the folder holds something else.
    """
    path = folder / _BEGUN
    if path.exists():
        _require_equal(folder, _read(path), arguments)
    elif (folder / records.INDEX).exists():
        return  # compared already; the folder lacks a shard
    elif any(child.name != lock.FILE for child in folder.iterdir()):
        raise InputError(f"{folder} is not empty and has no generated records; give a new folder")
    else:
        files.write_text(path, json.dumps(arguments) + "\n")


def _read(path):
    """The arguments that a folder was, or is being, filled with.

    Raises:
        InputError: the file is no JSON object.
    """
    try:
        arguments = json.loads(path.read_bytes())
        if not isinstance(arguments, dict):
            raise ValueError(f"it holds a {type(arguments).__name__}, not an object")
    except (OSError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise InputError(
            f"{path} is damaged ({reason}); remove the folder {path.parent}, or give a new one"
        ) from error
    return arguments


def _require_equal(folder, before, now):
    """Raise unless a folder was generated with the same arguments.

    Raises:
        InputError: names the arguments that differ.
    """
    changes = [
        f"{name} {_short(before.get(name))} -> {_short(value)}"
        for name, value in now.items()
        if before.get(name) != value
    ]
    if changes:
        raise InputError(
            f"{folder} holds records that were generated otherwise ({'; '.join(changes)}); remove it, or give a new folder"
        )


def _short(value):
    text = str(value)
    return text if len(text) < 50 else f"{text[:40]}…"
