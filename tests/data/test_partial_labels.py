import dataclasses
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax import config as configs
from cfmlc_jax import losses, metrics
from cfmlc_jax.causal.decorrelation import decorrelate
from cfmlc_jax.classify import build, tasks
from cfmlc_jax.data.identity import identity
from cfmlc_jax.data.sources import annotations, boxes, checks, partial
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.data.sources.table import Table
from cfmlc_jax.errors import InputError
from cfmlc_jax.metrics import cooccurrence
from cfmlc_jax.metrics.bootstrap import weighted_average_precision
from cfmlc_jax.metrics.context_auc import weighted_context_auc
from cfmlc_jax.results import multi_label, scores, summary
from cfmlc_jax.results.evidence import Training

MIXED = "a.jpg,cat;-dog;?bird\nb.jpg,bird;dog\nc.jpg,-cat\n"


@pytest.fixture
def write(tmp_path):
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (tmp_path / name).write_bytes(name.encode())

    def write(train, classes=""):
        (tmp_path / "train.csv").write_text(train, encoding="utf-8")
        if classes:
            (tmp_path / "classes.txt").write_text(classes, encoding="utf-8")
        return tmp_path

    return write


@pytest.fixture
def generator():
    return np.random.default_rng(0)


def with_unknown(generator, n=60, k=4):
    """Scores, labels without gaps, and the same labels with a third of them unknown."""
    values = generator.normal(size=(n, k)).round(1).astype(np.float32)
    full = (generator.random((n, k)) < 0.4).astype(np.int8)
    return values, full, np.where(generator.random((n, k)) < 0.33, np.int8(-1), full)


# Tables


def test_signs_say_absent_and_unknown(write):
    source = Table(write(MIXED), "train")
    assert source.class_names == ("bird", "cat", "dog")
    np.testing.assert_array_equal(source.labels, [[-1, 1, 0], [1, 0, 1], [0, 0, 0]])
    assert source.labels.dtype == np.int8
    np.testing.assert_array_equal(source[0]["labels"], [-1, 1, 0])


def test_what_is_not_mentioned_can_be_unknown(write):
    source = Table(write(MIXED), "train", unmentioned="unknown")
    np.testing.assert_array_equal(source.labels, [[-1, 1, 0], [1, -1, 1], [-1, 0, -1]])


def test_labels_without_a_gap_keep_their_type(write):
    assert Table(write("a.jpg,cat;-dog\nb.jpg,dog\n"), "train").labels.dtype == np.uint8


def test_a_listed_class_may_begin_with_a_sign(write):
    source = Table(write("a.jpg,-1;?x\nb.jpg,--1\n", classes="-1\n?x\n"), "train")
    np.testing.assert_array_equal(source.labels, [[1, 1], [0, 0]])


@pytest.mark.parametrize(
    ("text", "unmentioned", "message"),
    [
        ("a.jpg,cat;dog\nb.jpg,cat;-cat\n", "absent", r"train\.csv line 2: 'cat' and '-cat' contradict each other; keep"),
        ("a.jpg,cat;?cat\n", "absent", r"line 1: 'cat' and '\?cat' contradict"),
        ("a.jpg,cat\nb.jpg,\n", "unknown", r"line 2: nothing is known of 'b.jpg'; name a class"),
        ("a.jpg,cat\nb.jpg,?cat\n", "absent", r"line 2: nothing is known of 'b.jpg'"),
        ("a.jpg,cat;dog\nb.jpg,-dgo\n", "absent", r"line 2: label '-dgo': no image in train.csv has 'dgo'; did you mean 'dog'\? else write the classes into classes.txt"),
        ("a.jpg,cat;-\n", "absent", r"line 1: class name ''; give"),
    ],
)  # fmt: skip
def test_bad_partial_labels(write, text, unmentioned, message):
    with pytest.raises(InputError, match=message) as caught:
        Table(write(text), "train", unmentioned=unmentioned)
    assert "\n" not in str(caught.value)


def test_the_summary_counts_what_is_unknown(write):
    source = Table(write(MIXED), "train")
    assert "unknown labels: 1 of 9 (11.1%), left out of loss and metrics" in checks.summary("train", source)
    np.testing.assert_array_equal(checks.class_counts(source), [1, 1, 1])


def test_softmax_losses_refuse_them(write):
    source = Table(write("a.jpg,cat;-dog;?bird\nb.jpg,bird\nc.jpg,dog\n"), "train")
    with pytest.raises(
        InputError, match=r"train: 1 labels are unknown, but config.loss.name 'focal' is a softmax"
    ):
        checks.require_one_label("train", source, "focal")


def test_the_cache_of_annotations_keeps_them(tmp_path, monkeypatch):
    monkeypatch.setenv("CFMLC_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(annotations, "SMALLEST", 0)
    (tmp_path / "labels").write_text("x")
    labels = np.array([[1, 0, -1], [0, -1, 1]], np.int8)
    none = boxes.from_annotations([], [], [], [None, None])
    content = annotations.Annotations(["a", "b"], ["a", "b"], labels, ("x", "y", "z"), none)
    for read in (lambda: content, lambda: pytest.fail("it is in the cache")):
        kept = annotations.cached("partial", [tmp_path / "labels"], read)
        np.testing.assert_array_equal(kept.labels, labels)
        assert kept.labels.dtype == np.int8


# Hidden labels


def test_a_share_of_labels_is_hidden():
    scenes = Scenes("train", num_scenes=400)
    hidden = partial.Hidden(scenes, 0.5, seed=3, unmentioned="unknown")
    assert abs((hidden.labels < 0).mean() - 0.5) < 0.01
    assert (hidden.labels >= 0).any(axis=1).all()
    known = hidden.labels >= 0
    np.testing.assert_array_equal(hidden.labels[known], scenes.labels[known])
    np.testing.assert_array_equal(hidden[7]["labels"], hidden.labels[7])
    assert repr(hidden) != repr(partial.Hidden(scenes, 0.5, seed=4, unmentioned="unknown"))
    copy = pickle.loads(pickle.dumps(hidden))
    assert repr(copy) == repr(hidden)
    assert identity(copy) == identity(hidden) != identity(scenes)

    absent = partial.Hidden(scenes, 0.5, seed=3, unmentioned="absent")
    np.testing.assert_array_equal(absent.labels, np.maximum(hidden.labels, 0))
    assert absent.labels.dtype == np.uint8


def test_an_image_keeps_a_label_however_much_is_hidden():
    assert (~partial.hidden_entries((50, 3), 0.99, 0)).any(axis=1).all()


def test_training_alone_has_hidden_labels():
    config = configs.default()
    config.data.source, config.data.hide_labels, config.data.unmentioned = "scenes", 0.5, "unknown"
    config.data.scenes.num_train = config.data.scenes.num_test = 40
    lines = []
    sources = build.open_sources(configs.validate(config), ("train", "val"), lines.append)
    assert (sources["train"].labels < 0).any()
    assert sources["val"].labels.dtype == np.uint8
    assert "train with hidden labels: 40 images" in lines[-1]


def test_hidden_labels_need_the_multi_label_task():
    config = configs.default()
    config.task, config.loss.name, config.method = "single_label", "cross_entropy", "whole"
    config.data.hide_labels = 0.5
    with pytest.raises(InputError, match=r"config.data.hide_labels is for task 'multi_label'"):
        configs.validate(config)


# Loss


def test_unknown_entries_have_no_loss_and_no_gradient(generator):
    logits, full, labels = (jnp.asarray(each, jnp.float32) for each in with_unknown(generator))
    known = labels >= 0
    for gamma in (0.0, 4.0):
        section = dataclasses.make_dataclass(
            "Section", [("name", str), ("gamma_neg", float), ("gamma_pos", float), ("clip", float)]
        )("asymmetric", gamma, 0.0, 0.05)
        masked, plain = losses.create(section, partial=True), losses.create(section)
        entries = masked(logits, labels)
        np.testing.assert_array_equal(entries, jnp.where(known, plain(logits, full), 0))
        gradient = jax.grad(lambda x, loss=masked: loss(x, labels).sum())(logits)
        assert not gradient[~known].any()
        expected = jax.grad(lambda x, loss=plain: loss(x, full).sum())(logits)
        np.testing.assert_array_equal(gradient[known], expected[known])


# Metrics: a class is scored as if only its known images existed.


def test_average_precision_is_of_the_known_images(generator):
    values, _, labels = with_unknown(generator)
    for definition in metrics.AP_DEFINITIONS:
        ap = metrics.average_precision(values, labels, definition)
        for k in range(4):
            known = labels[:, k] >= 0
            alone = metrics.average_precision(values[known, k : k + 1], labels[known, k : k + 1], definition)
            assert ap[k] == alone[0]
        weights = np.ones((1, len(labels)))
        np.testing.assert_allclose(weighted_average_precision(values, labels, definition)(weights)[0], ap)


def test_a_class_of_which_nothing_is_known_has_no_positive():
    values, labels = np.zeros((2, 2)), np.array([[-1, 1], [-1, 0]])
    assert metrics.average_precision(values, labels, "sklearn")[0] == 0
    assert np.isnan(metrics.average_precision(values, labels, "voc")[0])


def test_counts_at_a_threshold_leave_unknown_entries_out():
    values = np.array([[0.9, 0.9], [0.9, 0.1], [0.1, 0.9]])
    labels = np.array([[1, -1], [0, 1], [1, 1]])
    # Known and predicted: (1, 1), (0, 1) of the first class, (1, 1) of the second.
    assert metrics.thresholded(values, labels, 0.5) == pytest.approx(
        {"CP": 75, "CR": 50, "CF1": 60, "OP": 200 / 3, "OR": 50, "OF1": 400 / 7}
    )


def test_context_is_measured_on_images_that_know_both(generator):
    values, _, labels = with_unknown(generator)
    pairs = [(0, 1), (0, 2), (3, 1)]
    aucs = weighted_context_auc(values, labels, pairs)(np.ones((1, len(labels))))[0]
    rates = cooccurrence.false_positive_rates(values, labels, 0.0)
    shares = cooccurrence.conditional_probability(labels)
    for auc, (target, context) in zip(aucs, pairs):
        known = (labels[:, [target, context]] >= 0).all(axis=1)
        two = np.ix_(known, [target, context])
        assert auc == pytest.approx(cooccurrence.context_auc(values[two], labels[two])[0, 1])
        alone = cooccurrence.false_positive_rates(values[two], labels[two], 0.0)
        assert rates.excess[target, context] == alone.excess[0, 1]
        assert shares[target, context] == cooccurrence.conditional_probability(labels[two])[0, 1]
    with pytest.raises(ValueError, match="a label is unknown"):
        cooccurrence.context_auc(values, labels)


def test_strengths_of_pairs_survive_hidden_labels():
    labels = Scenes("train", num_scenes=2000).labels.astype(np.int8)
    hidden = np.where(partial.hidden_entries(labels.shape, 0.5, 0), np.int8(-1), labels)
    np.testing.assert_allclose(cooccurrence.added_value(hidden), cooccurrence.added_value(labels), atol=0.12)


def test_unknown_labels_do_not_look_like_absence_to_decorrelation():
    labels = Scenes("train", num_scenes=1000).labels.astype(np.int8)
    # Hidden at random, one class is half as often known, and no more correlated with the others than before.
    hidden = labels.copy()
    hidden[::2, 0] = -1
    before, after = decorrelate(labels, 0.9), decorrelate(hidden, 0.9)
    assert after.correlation[0] == pytest.approx(before.correlation[0], abs=0.03)
    # An image's weight is that of its known labels.
    assert after.weights.mean() == pytest.approx(1)


# Results


def test_the_results_say_how_many_are_unknown(generator):
    values, _, labels = with_unknown(generator)
    scored = scores.Scores({"whole": values, "combined": values}, labels)
    unknown = int((labels < 0).sum())
    measured = multi_label.measures(scored, ())
    assert measured.classes is not None
    assert measured.classes.unknown == unknown
    assert measured.classes.to_json()["unknown"] == unknown
    assert "unknown" not in multi_label.Classes(4, 4).to_json()

    rows = scores.per_class_csv(scored, (), list("abcd")).splitlines()
    assert rows[0].startswith("class,positives,unknown,AP_")
    assert rows[1].split(",")[:3] == ["a", str((labels[:, 0] > 0).sum()), str((labels[:, 0] < 0).sum())]

    config = configs.default()
    config.effect.alphas = ()
    task = tasks.create(config, training_labels=labels, class_counts=None, num_classes=4)
    results = task.results(config, {"weights": scored, "average": scored}, None, None, list("abcd"))
    assert f"val: {unknown} labels are unknown; every metric leaves" in summary.multi_label_summary(
        {"val": results}
    )

    assert task.class_losses(values, labels)[labels < 0].max() == 0
    known = labels[0] >= 0
    assert task.image_losses(values, labels)[0] == task.image_losses(values[:1, known], labels[:1, known])[0]


def test_the_training_table_is_of_what_is_known(generator):
    _, full, labels = with_unknown(generator)
    training = tasks.create(
        configs.default(), training_labels=labels, class_counts=None, num_classes=4
    ).training
    assert training is not None
    known = (labels[:, 1] > 0) & (labels[:, 0] >= 0)
    assert training.of_images()[0, 1] == known.sum()
    assert training.of_images()[2, 2] == (labels[:, 2] >= 0).sum()
    whole = Training(60, cooccurrence.counts(full).tolist(), [])
    assert "known" not in whole.to_json()
    assert whole.of_images().diagonal().tolist() == [60] * 4
