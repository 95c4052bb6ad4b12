"""Counterfactual records: images whose shape, texture and background have labels of their own.

As in the reference: each shape is drawn once and painted `per_shape` times, with another texture and another
background each time. Labels are uniform and independent. (The reference permutes the labels of a batch of 100.)
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cfmlc_jax.causal import mechanisms
from cfmlc_jax.cgn.system import in_bytes
from cfmlc_jax.data.sources import counterfactuals as records
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.progress import Progress
from cfmlc_jax.errors import InputError
from cfmlc_jax.models.generators.mnist import SIZE, Composition, MnistGenerator

# Images that are drawn at once.
_BATCH = 500


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
    """

    def __init__(self, generator: MnistGenerator, mesh: jax.sharding.Mesh, b: int, per_shape: int = 1):
        def paint(variables, key):
            labels, noise, offsets = draw_inputs(key, b, per_shape, generator)
            composed = generator.apply(variables, labels, noise, offsets, train=False)
            return jnp.stack([labels[name] for name in mechanisms.MECHANISMS], axis=1), composed

        replicated = meshes.replicated(mesh)
        self._paint = jax.jit(
            paint, out_shardings=replicated, compiler_options=meshes.compiler_options(mesh)
        )

    def __call__(self, variables, key) -> tuple[np.ndarray, Composition]:
        labels, composed = self._paint(variables, key)
        return np.asarray(labels), composed


def write(
    folder: Path,
    generator: MnistGenerator,
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
) -> None:
    """Write a folder of counterfactual records; complete shards of an interrupted call are kept.

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

    Raises:
        InputError: the folder holds records of other arguments.
        RunError: the files cannot be written.
    """
    sizes = _sizes(num_records, shard_size)
    origin = origin | {"seed": seed, "per_shape": per_shape, "shard_size": shard_size}
    if _is_complete(folder, num_records, origin):
        return
    b = max(per_shape, _BATCH // per_shape * per_shape)
    painter = Painter(generator, mesh, b, per_shape)
    primary = jax.process_index() == 0
    folder.mkdir(parents=True, exist_ok=True)
    progress = Progress(num_records, batch_size=1, done=0, silent=not primary)
    done = 0
    for shard, size in enumerate(sizes):
        path = folder / records.shard_name(shard, len(sizes))
        if not path.exists():
            key = jax.random.fold_in(jax.random.key(seed), shard)
            images, labels = [], []
            for batch in range(-(-size // b)):
                poll()
                drawn, composed = painter(variables, jax.random.fold_in(key, batch))
                labels.append(drawn)
                images.append(np.asarray(in_bytes(composed.image)))
            if primary:
                records.write_shard(path, np.concatenate(images)[:size], np.concatenate(labels)[:size])
        done += size
        progress.report(done, f"counterfactuals {path.name}")
    if primary:
        records.write_index(
            folder, class_names=class_names, shards=sizes, image_size=SIZE, **origin
        )
    print_line(f"counterfactuals: {num_records:,} records in {folder}")
