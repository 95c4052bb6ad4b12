"""Trains a counterfactual generator for ImageNet, and generates counterfactuals."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from cfmlc_jax import config as configs
from cfmlc_jax.cgn import counterfactuals, opening
from cfmlc_jax.cgn.imagenet import build
from cfmlc_jax.cgn.imagenet.validation import Validation
from cfmlc_jax.checkpoint import read_model
from cfmlc_jax.config.workdir import require_own
from cfmlc_jax.engine import hooks, parameters
from cfmlc_jax.engine.instruments import Instruments
from cfmlc_jax.engine.memory import explained
from cfmlc_jax.engine.run import Run, RunOptions, Schedule
from cfmlc_jax.errors import RunError, WriteError

# Folder of the generated records in a workdir.
RECORDS = "counterfactuals"


def train(
    config, workdir: Path, print_line: Callable[[str], None], instruments: Instruments | None = None
) -> None:
    """Train a generator in a workdir, or resume; then generate counterfactual records.

    Args:
        config: validated and locked, of system "cgn_imagenet".
        workdir: an existing folder, empty or of the same configuration, that no other process trains in.
        print_line: prints a line for the user, on the first process.
        instruments: what observes the run; None: metrics.jsonl alone.

    Raises:
        InputError: a file of weights or the configuration cannot be used.
        RunError: a non-finite value, a full disk, not enough memory, or no readable checkpoint.
        Preempted: the process received SIGTERM.
    """
    parts = build.create(config)
    if config.weights.random:
        print_line(
            "config.weights.random: networks without a file start from random weights, which draw no images of objects"
        )
    with hooks.Preemption() as preemption:
        run = _run(config, parts, workdir, preemption, print_line, instruments or Instruments())
        try:
            with explained("training", "make train.micro_batch smaller, or generator.dtype bfloat16"):
                run.resume()
                run.fit()
            if config.counterfactuals.num_records:
                _generate(config, parts, run, workdir / RECORDS, preemption, print_line)
        except WriteError as error:
            raise RunError(f"{error}; {run.last_saved()}") from error
        finally:
            run.close()


def batches(size: int, steps: int) -> Iterator[dict[str, Any]]:
    """The batches of all steps: there is no data, so that they are all {"position": the numbers of this process}.

    Args:
        size: images in a step, over all processes.
        steps: number of batches.
    """
    own = np.split(np.arange(size, dtype=np.int32), jax.process_count())[jax.process_index()]
    for _ in range(steps):
        yield {"position": own}


def _validation(config, parts):
    return Validation(
        parts.generator,
        build.objective(config, parts),
        parts.mesh,
        truncation=config.train.truncation,
        num_images=config.evaluate.num_images,
        batch_size=config.evaluate.batch_size,
        on_collapse=config.train.on_collapse,
    )


def _run(config, parts, workdir, preemption, print_line, instruments):
    validation = _validation(config, parts)
    system = build.system(config, parts, validation)
    size = config.train.micro_batch * config.train.micro_batches
    schedule = Schedule(
        seed=config.seed,
        epochs=config.train.epochs,
        steps_per_epoch=config.train.steps_per_epoch,
        batch_size=size,
        log_every=config.train.log_every,
        checkpoint_every=config.train.checkpoint_every,
    )

    def start(state):
        return state.replace(learned=build.load(config.weights, parts, state.learned))

    options = RunOptions(
        meta={"config": configs.to_json(config), "class_names": list(parts.class_names)},
        print_line=print_line,
        preemption=preemption,
        require_same=lambda path, meta: require_own(path, meta, configs.to_json(config)),
        start=start,
        notes=validation.warnings,
        instruments=instruments,
    )
    run = Run(
        system, lambda step: batches(size, schedule.steps - step), schedule, workdir, parts.mesh, options
    )
    networks = [
        parameters.Network(name, run.abstract.learned[name]["params"], trained=name == "mechanisms")
        for name in ("mechanisms", "target", "u2net", "features")
    ]
    for line in parameters.write(workdir, networks):
        print_line(line)
    print_line(f"images of {parts.image_size} px")
    return run


def _generate(config, parts, run, folder, preemption, print_line):
    """Write counterfactual records with the weights of the last checkpoint."""
    step = run.checkpoints.latest_step()
    model = read_model(run.checkpoints.path(step), build.model_item(config, parts))
    generator, origin, options = opening.imagenet_options(config, parts, truncation=None, classes=None)
    counterfactuals.write(
        folder,
        generator,
        model,
        class_names=parts.class_names,
        num_records=config.counterfactuals.num_records,
        per_shape=config.counterfactuals.per_shape,
        shard_size=config.counterfactuals.shard_size,
        seed=config.seed,
        mesh=parts.mesh,
        origin={"checkpoint": str(step)} | origin,
        print_line=print_line,
        poll=lambda: preemption.raise_if_requested(
            "training is done and saved, its counterfactuals come next"
        ),
        **options,
    )
