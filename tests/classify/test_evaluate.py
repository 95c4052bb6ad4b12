"""The full evaluation: it writes what the metrics give, and everything that a report needs."""

import base64
import io
import json
from dataclasses import replace

import jax
import numpy as np
import pytest
from PIL import Image

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax.causal.views import patch_boxes
from cfmlc_jax.classify import build, evaluate, examples
from cfmlc_jax.classify.evaluate import Classifier, Output, TrainingSplit
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.engine.hooks import Preempted
from cfmlc_jax.metrics import bootstrap, cooccurrence, localization, mean_average_precision
from cfmlc_jax.metrics.context_auc import mean_context_auc
from cfmlc_jax.report import page
from cfmlc_jax.results import read
from cfmlc_jax.results.evidence import FILE, Evidence
from cfmlc_jax.results.predictions import PATCH
from cfmlc_jax.results.scores import probabilities
from cfmlc_jax.results.tables import with_interval

SPLIT = "test_iid"
IMAGES = 40


def tiny(method):
    config = configs.default()
    config.data.source = "scenes"
    config.data.threads = 2
    config.views.image_size = 32
    config.model.name = "resnet_small"
    config.method = method
    config.train.batch_size = config.evaluate.batch_size = 8
    config.effect.alphas = (0.5,)
    if method == "whole":
        config.effect.kinds = ("whole",)
    return configs.validate(config)


def random_weights(config, parts):
    """Other raw weights than averaged ones, so that the results of one are not those of the other."""
    model = build.initial(config, parts)
    params = jax.tree.map(lambda leaf: -leaf, model["variables"]["params"])
    return model | {"variables": model["variables"] | {"params": params}}


def run(config, folder, training_labels=None, missing="", source=Scenes, poll=lambda: None):
    """A full evaluation of random weights; returns what it printed."""
    parts = build.create(config, 10)
    model = random_weights(config, parts)
    source, printed = source(SPLIT, num_scenes=IMAGES), []
    evaluate.full_evaluation(
        config,
        Classifier(parts, model, source.class_names, "7"),
        {SPLIT: source},
        TrainingSplit(training_labels, missing=missing),
        Output(folder, printed.append, poll),
    )
    return "\n".join(printed)


@pytest.fixture(scope="module")
def train():
    return Scenes("train", num_scenes=300)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory, train):
    """A workdir with the evaluation of a classifier with patches, and the printed text."""
    path = tmp_path_factory.mktemp("run")
    (path / "report").mkdir()
    (path / "printed").write_text(run(tiny("pat_t"), path / "report", train.labels))
    return path


@pytest.fixture(scope="module")
def average(workdir):
    return json.loads((workdir / "report" / "results.json").read_text())[SPLIT]["average"]


@pytest.fixture(scope="module")
def scores(workdir):
    with np.load(workdir / "report" / f"scores_{SPLIT}_average.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="module")
def evidence(workdir):
    return Evidence.from_json(json.loads((workdir / "report" / FILE).read_text()))


def test_intervals(average, scores):
    intervals = average["intervals"]["predictions"]
    for definition in ("sklearn", "voc"):
        value = mean_average_precision(scores["combined"], scores["labels"], definition)
        low, high = intervals["combined"][f"mAP_{definition}"]
        assert low < high
        gain, gain_low, gain_high = intervals["combined"][f"gain_{definition}"]
        whole = mean_average_precision(scores["whole"], scores["labels"], definition)
        assert gain == pytest.approx(value - whole)
        assert gain_low <= gain_high
        assert intervals["whole"][f"gain_{definition}"] == [0, 0, 0]
    # The generator's first draws are for the first definition.
    low, high = intervals["whole"]["mAP_sklearn"]
    again = bootstrap.interval(
        bootstrap.weighted_mean_average_precision(scores["whole"], scores["labels"], "sklearn"),
        len(scores["labels"]), generator=np.random.default_rng(0), resamples=200, bounds=bootstrap.PERCENT,
    )  # fmt: skip
    assert (low, high) == pytest.approx((again.low, again.high))
    assert average["intervals"]["resamples"] == 200


def test_context_is_over_the_strongest_pairs_of_training(average, scores, evidence, train):
    pairs = cooccurrence.strongest_pairs(train.labels, 20)
    assert evidence.training.pairs == pairs.tolist()
    # Partners co-occur in nine of ten scenes: they are the ten strongest pairs.
    assert {tuple(pair) for pair in evidence.training.pairs[:10]} == {(d, d ^ 1) for d in range(10)}
    assert evidence.training.images == 300
    assert np.array_equal(evidence.training.counts, cooccurrence.counts(train.labels))
    effect = scores["combined"] - 0.5 * scores["null_pivot"]
    for name, logits in (("whole", scores["whole"]), ("tde_pivot_0.5", effect)):
        use = average["context"]["predictions"][name]
        excess = cooccurrence.false_positive_rates(probabilities(logits), scores["labels"], 0.5).excess
        by_pair = excess[tuple(pairs.T)]
        np.testing.assert_allclose(use["by_pair"], 100 * by_pair)
        assert use["excess_fpr"][0] == pytest.approx(100 * np.nanmean(by_pair))
        assert use["undefined"] == np.isnan(by_pair).sum()
        auc = mean_context_auc(
            logits, scores["labels"], pairs, generator=np.random.default_rng(0), resamples=1
        )
        assert use["context_auc"][0] == pytest.approx(100 * auc.value)


def test_of_many_patches_only_pivots_are_kept(workdir, scores, evidence, train, monkeypatch, tmp_path):
    """The results are the same; the attention of the examples is computed once more."""
    monkeypatch.setattr(evaluate, "MOST_KEPT", 3)
    run(tiny("pat_t"), tmp_path, train.labels)
    with np.load(tmp_path / f"scores_{SPLIT}_average.npz") as arrays:
        assert "attention" not in arrays
        np.testing.assert_array_equal(arrays["pivot"], scores["attention"].argmax(axis=1))
        np.testing.assert_array_equal(arrays["combined"], scores["combined"])
    assert Evidence.from_json(json.loads((tmp_path / FILE).read_text())) == evidence
    results = workdir / "report" / "results.json"
    assert (tmp_path / "results.json").read_text() == results.read_text()
    assert read.scores(tmp_path, SPLIT, evidence).pivot is not None


def test_equal_rankings_have_equal_intervals(average):
    uses = average["context"]["predictions"]
    # The null "mean" is the same for all images: it shifts logits, and AUC depends on ranks only.
    assert uses["tde_whole_0.5"]["context_auc"] == pytest.approx(uses["combined"]["context_auc"], nan_ok=True)


def test_localisation(average, scores):
    source = Scenes(SPLIT, num_scenes=IMAGES)
    boxes = source.boxes()
    pairs = localization.localize(
        scores["attention"].argmax(axis=1),
        boxes.corners,
        boxes.classes,
        boxes.images,
        np.full((IMAGES, 2), source.size),
        size=32,
        patch_boxes=patch_boxes(32, 2),
    )
    rates = localization.rates(pairs)
    located = average["localization"]
    assert located["all"]["hit"] == pytest.approx(100 * rates.hit)
    assert located["all"]["pairs"] == source.labels.sum()
    assert sum(by["pairs"] for by in located["by_size"].values()) == rates.pairs
    assert list(located["by_class"]) == list(source.class_names)
    assert located["relative"] is True


def test_examples_are_the_best_and_the_worst(scores, evidence):
    logits, labels = scores["combined"].astype(np.float64), scores["labels"]
    losses = np.where(labels, np.log1p(np.exp(-logits)), np.log1p(np.exp(logits)))
    order = np.argsort(losses.mean(axis=1))
    shown = evidence.examples[SPLIT]
    assert [e.id for e in shown["best"]] == [f"{SPLIT}-{i:06d}" for i in order[:3]]
    assert [e.id for e in shown["worst"]] == [f"{SPLIT}-{i:06d}" for i in order[::-1][:3]]
    first, last = shown["best"][0], shown["worst"][0]
    assert first.loss == pytest.approx(losses.mean(axis=1).min())
    assert first.labels == np.flatnonzero(labels[order[0]]).tolist()
    assert [c.label for c in first.classes] == np.argsort(-logits[order[0]], kind="stable")[:3].tolist()
    assert [c.label for c in last.classes] == np.argsort(-losses[order[-1]], kind="stable")[:3].tolist()
    one = first.classes[0]
    assert sum(one.weights) == pytest.approx(1, abs=1e-5)
    i, k = order[0], one.label
    assert one.effect == pytest.approx(logits[i, k] - scores["null_pivot"][i, k], abs=1e-5)
    assert one.present == bool(labels[i, k]) == bool(one.boxes)
    with Image.open(io.BytesIO(base64.b64decode(first.jpeg))) as picture:
        assert picture.size == (first.width, first.height)
    assert evidence.patch_boxes == [[0, 0, 0.5, 0.5], [0, 0.5, 0.5, 1], [0.5, 0, 1, 0.5], [0.5, 0.5, 1, 1]]


def test_tables_have_context_and_pivots(workdir, average):
    printed, text = (workdir / "printed").read_text(), (workdir / "report" / "results.md").read_text()
    auc = with_interval(average["context"]["predictions"]["combined"]["context_auc"])
    hit = average["localization"]["all"]["hit"]
    for words in (auc, " strongest pairs", f"{hit:.2f}"):
        assert words in printed
        assert words in text


def test_the_report_is_made_from_the_files_of_an_evaluation(workdir):
    text = page.write(workdir).read_text(encoding="utf-8")
    assert "Best and worst images" in text
    assert text.count('href="data:image/jpeg') == 6
    # Of each of the ten classes three images without it and three with it.
    assert text.count('src="data:image/jpeg') == 60


def test_without_patches_and_training_labels(tmp_path):
    (tmp_path / "report").mkdir()
    printed = run(tiny("whole"), tmp_path / "report", None, "there is no training split")
    results = json.loads((tmp_path / "report" / "results.json").read_text())
    assert results[SPLIT]["average"]["context"] is None
    assert results[SPLIT]["average"]["localization"] is None
    assert "pivot" not in printed
    text = page.write(tmp_path).read_text(encoding="utf-8")
    assert "Not available: there is no training split." in text
    assert "This method has no patches" in text


def scored(config, folder):
    """Evaluates until the scores are written, where it is asked to end: once before each batch, then once."""
    polls = []

    def poll():
        polls.append(None)
        if len(polls) == IMAGES // 8 + 1:
            raise Preempted("asked to end")

    with pytest.raises(Preempted):
        run(config, folder, poll=poll)


def test_an_evaluation_may_be_asked_to_end_before_each_batch_and_before_its_metrics(tmp_path):
    scored(tiny("whole"), tmp_path)
    assert (tmp_path / f"scores_{SPLIT}_average.npz").exists()
    assert not (tmp_path / "results.json").exists()


def test_logits_with_tau_norm_are_divided_by_the_lengths_of_the_weights(tmp_path):
    config = tiny("whole").unlock()
    config.model.head = "dot_product"
    logits = {}
    for tau in (0.0, 1.0):
        config.model.dot_product.tau_norm = tau
        folder = tmp_path / str(tau)
        folder.mkdir()
        scored(config, folder)
        for weights in ("weights", "average"):
            with np.load(folder / f"scores_{SPLIT}_{weights}.npz") as arrays:
                logits[tau, weights] = arrays["whole"]
    model = random_weights(config, build.create(config, 10))
    for weights, name in (("weights", "variables"), ("average", "average")):
        lengths = np.linalg.norm(model[name]["params"]["head"]["whole"]["kernel"], axis=0)
        np.testing.assert_allclose(logits[1.0, weights], logits[0.0, weights] / lengths, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("source", "names", "words"),
    [
        ("table", ["a"], "the training split cannot be read: data root"),
        ("scenes", ["a"], "the training split has other classes: 10 (digit 0, "),
    ],
)
def test_without_training_labels_the_evaluation_says_why(monkeypatch, tmp_path, source, names, words):
    monkeypatch.chdir(tmp_path)
    config, printed = tiny("pat_t").unlock(), []
    config.data.source = source
    labels, missing = evaluate._training_labels(config, {}, names, printed.append)
    assert labels is None
    assert missing.startswith(words)
    assert printed[-1] == f"not reported: co-occurrence, because {missing}"


class PartlyAnnotated(Scenes):
    """Scenes; only the first half has boxes."""

    def boxes(self):
        boxes = super().boxes()
        first = boxes.images < IMAGES // 2
        return replace(
            boxes,
            corners=boxes.corners[first],
            classes=boxes.classes[first],
            images=boxes.images[first],
            left_out="boxes left out of localisation: 7, first x",
        )


def test_boxes_that_are_left_out_are_reported(tmp_path):
    printed = run(tiny("whole"), tmp_path, source=PartlyAnnotated)
    assert f"{SPLIT}: boxes left out of localisation: 7, first x" in printed.splitlines()


@pytest.mark.parametrize(("branches", "branch"), [("self", "score"), ("none", "whole")])
def test_evaluation_with_fewer_branches_than_were_trained(tmp_path, branches, branch):
    """Evaluation with one branch gives the scores of a training with two equal branches."""
    trained = tiny("pat_t")
    trained.unlock()
    trained.data.test_splits, trained.data.scenes.num_test = (SPLIT,), IMAGES
    model = build.initial(trained, build.create(trained, 10))
    meta = {
        "config": configs.to_json(trained),
        "class_names": list(Scenes(SPLIT, num_scenes=1).class_names),
        "num_classes": 10,
    }
    checkpoints.write(tmp_path / "trained.ckpt", model=model, meta=meta)
    for weights in ("variables", "average"):
        head = model[weights]["params"]["head"]
        head["attention"] = head["score"] = head[branch]
    checkpoints.write(tmp_path / "twice.ckpt", model=model, meta=meta)

    wanted = configs.from_json(configs.to_json(trained))
    wanted.unlock()
    if branches == "self":
        wanted.patches.branches = "self"
    else:
        wanted.method = "pat_i"
    metrics = {}
    for name, path, config in (
        ("fewer", "trained", wanted), ("twice", "twice", None), ("as it was", "trained", None)
    ):  # fmt: skip
        (tmp_path / name).mkdir(exist_ok=True)
        results = evaluate.evaluate_checkpoint(
            tmp_path / f"{path}.ckpt", config, tmp_path / name, lambda line: None
        )
        metrics[name] = results[SPLIT].measures["average"].metrics
    assert metrics["fewer"] == metrics["twice"]
    assert metrics["fewer"][PATCH] != metrics["as it was"][PATCH]


def test_the_gallery_of_one_of_several_processes_does_not_poll(tmp_path, monkeypatch):
    """The other processes have none, and all must poll equally often."""
    polls = []
    run(tiny("whole"), tmp_path, poll=lambda: polls.append("of one"))

    def no_examples(*args, **options):  # come just before the gallery
        monkeypatch.setattr(jax, "process_count", lambda: 2)
        return {}

    monkeypatch.setattr(examples, "choose", no_examples)
    run(tiny("whole"), tmp_path, poll=lambda: polls.append("of two"))
    assert polls.count("of two") == IMAGES // 8 + 1
    assert polls.count("of one") > polls.count("of two")
