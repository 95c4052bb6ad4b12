"""Trains a counterfactual generative network, generates counterfactuals, and trains classifiers on them."""

from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from cfmlc_jax import config as configs
from cfmlc_jax.cgn import build, classifiers, counterfactuals, scenes, sheets
from cfmlc_jax.cgn.validation import Validation
from cfmlc_jax.checkpoint import read_model
from cfmlc_jax.config.schedule import schedule
from cfmlc_jax.config.workdir import require_own
from cfmlc_jax.data import build as data
from cfmlc_jax.data.identity import changed_images, identity
from cfmlc_jax.data.pipeline import steps_per_epoch, train_batches
from cfmlc_jax.data.sources.checks import summary
from cfmlc_jax.data.sources.scene_objects import SceneObjects
from cfmlc_jax.engine import hooks, parameters
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.instruments import Instruments
from cfmlc_jax.engine.memory import explained
from cfmlc_jax.engine.run import Run, RunOptions
from cfmlc_jax.errors import InputError, RunError, WriteError
from cfmlc_jax.results import mechanisms as results


def train(
    config, workdir: Path, print_line: Callable[[str], None], instruments: Instruments | None = None
) -> None:
    """Train a network in a workdir, or resume; then do what comes after (`classifiers.train`).

    The workdir gets the run's checkpoints, `sheets/`, `counterfactuals/`, a folder for each classifier, and a table of
    their accuracies. Each stage is resumed where it stopped.

    Args:
        config: validated and locked, of system "cgn".
        workdir: an existing folder, empty or of the same configuration, that no other process trains in.
        print_line: prints a line for the user, on the first process.
        instruments: what observes the run; None: metrics.jsonl alone.

    Raises:
        InputError: the data or the configuration cannot be used, or the data has changed since the checkpoint.
        RunError: a non-finite value, a full disk, not enough memory, or no readable checkpoint.
        Preempted: the process received SIGTERM.
    """
    source = data.mechanism_source(config.data, "train")
    print_line(summary("train", source))
    build.require_every_class(source)
    with hooks.Preemption() as preemption:
        training = _Training(config, source)
        run = training.run(workdir, preemption, print_line, instruments or Instruments())
        try:
            with explained("training", "make train.batch_size, generator.ngf or critic.ndf smaller"):
                run.resume()
                run.fit()
            training.draw_sheets(run, workdir / results.FOLDER)
            training.generate(run, workdir / results.RECORDS, preemption, print_line)
        except WriteError as error:
            raise RunError(f"{error}; {run.last_saved()}") from error
        finally:
            run.close()
    classifiers.train(config, workdir, workdir / results.RECORDS, print_line)


class _Training:
    """The system, the batches and the run options of a network in training."""

    def __init__(self, config, source):
        self._config, self._source = config, source
        # Drawing from a checkpoint needs no such batches.
        for section in ("train", "evaluate"):
            meshes.check_batch(f"{section}.batch_size", config[section].batch_size)
        self._steps_per_epoch = steps_per_epoch(source, config.train.batch_size)
        if not self._steps_per_epoch:
            raise InputError(
                f"train has {len(source)} images, fewer than config.train.batch_size {config.train.batch_size}; "
                "make the batch smaller"
            )
        self._data = {"train": identity(source)}
        self._parts = build.create(config, len(source.class_names))
        self._validation = Validation(
            self._parts.generator,
            self._parts.critic,
            source,
            self._parts.mesh,
            ema_decay=config.optim.ema_decay,
            on_collapse=config.train.on_collapse,
        )
        self._system = build.system(config, self._parts, self._validation)
        self._drawing = None
        self._artist = sheets.Artist(self._parts.generator, self._parts.mesh, source.class_names)

    def run(self, workdir, preemption, print_line, instruments) -> Run:
        """The run that trains the system in a workdir."""
        config = self._config
        options = RunOptions(
            meta={
                "config": configs.to_json(config),
                "class_names": list(self._source.class_names),
                "data": self._data,
            },
            print_line=print_line,
            preemption=preemption,
            require_same=self._require_same,
            start=self._start,
            notes=self._validation.warnings,
            keep=lambda epoch: self._keep_sheet(workdir / results.FOLDER, epoch),
            instruments=instruments,
        )
        planned = schedule(config, self._steps_per_epoch)
        run = Run(self._system, self._batches, planned, workdir, self._parts.mesh, options)
        learned = run.abstract.learned
        networks = [parameters.Network(part, learned[part]["params"]) for part in ("generator", "critic")]
        for line in parameters.write(workdir, networks):
            print_line(line)
        return run

    def draw_sheets(self, run, folder) -> None:
        """Write the sheets with the averaged weights of the last checkpoint, unless they are there."""
        # Only the first process writes, and so only it knows what is there: all processes draw.
        present = all((folder / results.sheet_file(name)).exists() for name in results.SHEETS)
        if present and jax.process_count() == 1:
            return
        drawn = self._artist.sheets(self._last(run)[1], self._config.seed)
        if jax.process_index() == 0 and not present:
            sheets.write(folder, drawn, sheets.SCALE)

    def generate(self, run, folder, preemption, print_line) -> None:
        """Write counterfactual records with the averaged weights of the last checkpoint."""
        config, (step, variables) = self._config, self._last(run)
        options = {
            "num_records": config.counterfactuals.num_records,
            "shard_size": config.counterfactuals.shard_size,
            "seed": config.seed,
            "mesh": self._parts.mesh,
            "origin": {"checkpoint": str(step), "data": config.data.source},
            "print_line": print_line,
            "poll": lambda: preemption.raise_if_requested(
                "training is done and saved, its counterfactuals come next"
            ),
        }
        if isinstance(self._source, SceneObjects):
            scenes.write(
                folder,
                self._parts.generator,
                variables,
                self._source,
                generated_backgrounds=config.counterfactuals.generated_backgrounds,
                **options,
            )
            return
        counterfactuals.write(
            folder,
            self._parts.generator,
            variables,
            class_names=self._source.class_names,
            per_shape=config.counterfactuals.per_shape,
            **options,
        )

    def _last(self, run):
        """The last checkpoint's step, and the weights that draw."""
        step = run.checkpoints.latest_step()
        if self._drawing is None:
            model = read_model(run.checkpoints.path(step), self._system.split(run.abstract.learned)[0])
            self._drawing = counterfactuals.drawing_weights(
                model["average"], self._parts.generator, self._config.optim.ema_decay
            )
        return step, self._drawing

    def _keep_sheet(self, folder, epoch):
        """Write the sheet of an epoch that was validated just now; returns it as an image [1, h, w, 3]."""
        picture = self._artist.after_epoch(self._validation.drawing)
        if jax.process_index() == 0:
            sheets.write_epoch(folder, epoch, picture)
        return {"sheet": np.asarray(picture)[None]}

    def _batches(self, from_step):
        return train_batches(
            self._source,
            self._parts.transform,
            batch_size=self._config.train.batch_size,
            epochs=self._config.train.epochs,
            seed=self._config.seed,
            reading=self._parts.reading,
            start_step=from_step,
        )

    def _start(self, state):
        if not self._config.loss.features_from:
            return state
        path = Path(self._config.loss.features_from)
        loaded = build.vgg16_features(path, state.learned["features"])
        return state.replace(learned=state.learned | {"features": loaded})

    def _require_same(self, path, meta):
        require_own(path, meta, configs.to_json(self._config))
        self._require_same_data(path, meta)

    def _require_same_data(self, path, meta):
        changes = changed_images(meta["data"], self._data, same_classes=True)
        if changes:
            raise InputError(
                f"checkpoint {path} was trained on other data ({'; '.join(changes)}); restore the data, or use "
                "another --workdir"
            )
