"""What a classifier's training hands to the engine: batches by their step, meta, schedule, validation."""

import numpy as np
import pytest

from cfmlc_jax import config as configs
from cfmlc_jax.classify import scoring, train
from cfmlc_jax.data.identity import identity
from cfmlc_jax.data.sources.partial import Hidden
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.engine.hooks import Preemption
from cfmlc_jax.engine.instruments import Instruments
from cfmlc_jax.engine.run import Schedule
from cfmlc_jax.errors import InputError
from cfmlc_jax.results.scores import Scores

CLASSES = 10


def configuration(**fields):
    config = configs.default()
    config.data.source = "scenes"
    config.data.threads = 1
    config.views.image_size = 16
    config.model.name = "resnet_small"
    config.train.batch_size = config.evaluate.batch_size = 8
    config.train.epochs = 2
    for name, value in fields.items():
        section, _, leaf = name.rpartition(".")
        (configs.field(config, section) if section else config)[leaf] = value
    return configs.validate(config)


SINGLE = {"task": "single_label", "method": "whole", "loss.name": "cross_entropy", "effect.kinds": ()}
TRAIN, VAL = Scenes("train", num_scenes=24), Scenes("val", num_scenes=16)


def training(**fields):
    return train._Training(configuration(**fields), TRAIN, VAL)


def test_batches_are_a_function_of_the_step():
    made = training()
    whole, later = list(made._batches(0, print)), list(made._batches(4, print))
    assert (len(whole), len(later)) == (6, 2)
    for ours, theirs in zip(later, whole[4:], strict=True):
        assert set(ours) == {"views", "labels"}
        for name in ours:
            np.testing.assert_array_equal(ours[name], theirs[name])
    assert (whole[0]["views"] != later[0]["views"]).any()


def test_a_checkpoint_knows_its_configuration_classes_and_data():
    made = training()
    meta = made._meta()
    assert set(meta) == {"config", "class_names", "data"}
    assert configs.from_json(meta["config"]) == configuration()
    assert meta["class_names"] == list(TRAIN.class_names)
    assert meta["data"] == {"train": identity(TRAIN), "val": identity(VAL)}
    made._require_same_data("7", meta)
    for split, words in (("train", "train has 24 images, not 12"), ("val", "val has 16 images, not 12")):
        other = {**meta, "data": meta["data"] | {split: identity(Scenes(split, num_scenes=12))}}
        with pytest.raises(InputError, match=words):
            made._require_same_data("7", other)


def test_single_labels_are_counted():
    source = Scenes("train", num_scenes=24)
    source.labels = np.eye(CLASSES, dtype=np.uint8)[np.arange(24) % 3]  # of one digit each
    meta = train._Training(configuration(**SINGLE), source, VAL)._meta()
    assert meta["class_counts"] == [8, 8, 8] + 7 * [0]


def test_unknown_labels_reach_the_step_and_have_no_loss():
    made = train._Training(configuration(), Hidden(TRAIN, 0.5, seed=0, unmentioned="unknown"), VAL)
    labels = next(made._batches(0, print))["labels"]
    assert set(np.unique(labels)) == {-1, 0, 1}
    loss = made.system._objective.loss
    logits = np.ones_like(labels)
    # Whatever is predicted for them.
    assert loss(logits, labels) == loss(np.where(labels < 0, 50, logits), labels) > 0


@pytest.mark.parametrize(("early_stop", "patience"), [(True, 3), (False, None)])
def test_the_schedule(tmp_path, early_stop, patience):
    fields = {
        "seed": 5,
        "train.early_stop": early_stop,
        "train.patience": 3,
        "train.log_every": 7,
        "train.checkpoint_every": 11,
    }
    run = training(**fields).run(tmp_path, Preemption(), print, Instruments())
    run.close()
    assert run._schedule == Schedule(
        seed=5,
        epochs=2,
        steps_per_epoch=3,
        batch_size=8,
        log_every=7,
        checkpoint_every=11,
        patience=patience,
    )


def test_validation_scores_both_sets_of_weights(monkeypatch):
    made, asked = training(), []
    labels = (np.arange(16 * CLASSES).reshape(16, CLASSES) % 3 == 0).astype(np.uint8)

    def score_readable(parts, score, model, source, *, batch_size, unreadable, poll, attention):
        assert not attention
        asked.append((model, source, batch_size, poll))
        wrong = 1 - labels.astype(np.float32)
        return {
            weights: Scores(logits={"combined": logits, "whole": wrong}, labels=labels)
            for weights, logits in (("weights", wrong), ("average", labels.astype(np.float32)))
        }, source

    monkeypatch.setattr(scoring, "score_readable", score_readable)
    learned = {"variables": 1, "average": 2, "mean_colour": 3, "opt_state": 4}
    metrics = made.system.validate(learned, poll=print)
    assert asked == [({"variables": 1, "average": 2, "mean_colour": 3}, VAL, 8, print)]
    assert metrics["average"][made.system.selection] == 100
    assert metrics["weights"][made.system.selection] < 100


def test_a_run_reports_a_slow_average(tmp_path):
    lines = []
    with Preemption() as preemption:
        training().run(tmp_path, preemption, lines.append, Instruments()).close()
    assert [line for line in lines if line.startswith("few steps: after 6 ")]
