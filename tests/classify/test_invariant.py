"""Invariant classifiers: the loss by hand, what does not fit together, and runs from the command line."""

import json
import os
import shutil
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from PIL import Image
from training import Training, mesh_of

import cfmlc_jax
from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax import losses, main
from cfmlc_jax.causal.mechanisms import MECHANISMS
from cfmlc_jax.causal.patches import POOLINGS
from cfmlc_jax.classify import build, invariant, opening, train
from cfmlc_jax.classify.patching import Whole
from cfmlc_jax.data.sources import counterfactuals
from cfmlc_jax.data.sources.long_tailed_digits import LongTailedDigits
from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.classifier import Outputs
from cfmlc_jax.models.heads.mechanisms import MechanismHead
from cfmlc_jax.predict import __main__ as predict

CONFIG = Path(__file__).parents[1] / "configs" / "invariant.py"
LAST = 20


def configuration(**fields):
    scope: dict = {}
    exec(CONFIG.read_text(), scope)
    config = scope["get_config"]()
    for name, value in fields.items():
        section, _, leaf = name.rpartition(".")
        (configs.field(config, section) if section else config)[leaf] = value
    return configs.validate(config)


def generate(folder, count=40, seed=0, size=32, names=LongTailedDigits.class_names):
    """Records of test digits on other images' backgrounds: enough to be read, not to learn from."""
    source = LongTailedDigits("train", most=4, ratio=1.0, size=size, seed=seed)
    generator = np.random.default_rng(seed)
    folder.mkdir()
    half = count // 2
    for shard in range(2):
        chosen = range(shard * half, (shard + 1) * half)
        shapes = source.labels[list(chosen)].argmax(axis=1)
        others = generator.integers(0, len(names), (half, 2))
        counterfactuals.write_shard(
            folder / counterfactuals.shard_name(shard, 2),
            [source[i]["image"] for i in chosen],
            np.column_stack([shapes, others]),
        )
    counterfactuals.write_index(
        folder, class_names=names, shards=(half, half), image_size=size, checkpoint="step 1", seed=seed
    )
    return folder


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    return generate(tmp_path_factory.mktemp("generated") / "records")


def drawn_outputs(rng, b=4, k=3):
    heads = {name: jnp.asarray(rng.normal(size=(b, 1, k)), jnp.float32) for name in MECHANISMS}
    return Outputs(sum(heads.values()) / 3, None, None, None, {}, mechanisms=heads)


def mixed_batch(which, mechanisms, labels, k=3):
    return {
        "labels": jnp.asarray(np.eye(k, dtype=np.float32)[labels]),
        "counterfactual": jnp.asarray(which),
        "mechanisms": {name: jnp.asarray(rows) for name, rows in zip(MECHANISMS, np.transpose(mechanisms))},
    }


def cost(logits, label):
    return np.log(np.exp(logits).sum()) - logits[label]


def test_the_loss_by_hand(rng):
    outputs = drawn_outputs(rng)
    batch = mixed_batch(
        [False, True, True, False], [[-1] * 3, [0, 1, 2], [2, 2, 1], [-1] * 3], labels=[1, 0, 2, 0]
    )
    parts = invariant.loss_parts(outputs, batch, loss=losses.cross_entropy)
    assert tuple(parts) == invariant.LOSSES == ("loss_real", "loss_shape", "loss_texture", "loss_background")
    heads = {name: np.float64(logits[:, 0]) for name, logits in outputs.mechanisms.items()}
    mean = sum(heads.values()) / 3
    expected = {
        "loss_real": (cost(mean[0], 1) + cost(mean[3], 0)) / 2,
        "loss_shape": (cost(heads["shape"][1], 0) + cost(heads["shape"][2], 2)) / 2,
        "loss_texture": (cost(heads["texture"][1], 1) + cost(heads["texture"][2], 2)) / 2,
        "loss_background": (cost(heads["background"][1], 2) + cost(heads["background"][2], 1)) / 2,
    }
    for name, value in expected.items():
        np.testing.assert_allclose(parts[name], value, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("generated", [True, False])
def test_a_mean_over_no_image_is_0_and_has_no_gradient(rng, generated):
    outputs = drawn_outputs(rng)
    label = 1 if generated else -1
    batch = mixed_batch([generated] * 4, [[label] * 3] * 4, labels=[0, 1, 2, 0])

    def loss(heads):
        whole = sum(heads.values()) / 3
        parts = invariant.loss_parts(
            outputs.replace(whole=whole, mechanisms=heads), batch, loss=losses.cross_entropy
        )
        return sum(parts.values()), parts

    (_, parts), gradient = jax.value_and_grad(loss, has_aux=True)(outputs.mechanisms)
    absent = ["loss_real"] if generated else invariant.LOSSES[1:]
    for name, value in parts.items():
        assert (value == 0) == (name in absent)
    for leaf in jax.tree.leaves(gradient):
        assert np.isfinite(leaf).all()
        assert np.abs(leaf).max() > 0


def test_the_logits_of_heads(rng):
    outputs = drawn_outputs(rng)
    logits = invariant.head_logits(outputs)
    assert set(logits) == {*MECHANISMS, "shape_texture"}
    for name in MECHANISMS:
        np.testing.assert_array_equal(logits[name], outputs.mechanisms[name][:, 0])
    np.testing.assert_allclose(logits["shape_texture"], (logits["shape"] + logits["texture"]) / 2)
    assert invariant.head_logits(outputs.replace(mechanisms=None)) == {}


def test_the_head_is_three_layers_and_their_mean(rng):
    model = catalogue.create_model("cnn_mnist", 5, image_size=32, head="mechanisms")
    views = jnp.asarray(rng.random((2, 1, 32, 32, 3)), jnp.float32)
    variables = model.init(jax.random.key(0), views, train=False)
    outputs = model.apply(variables, views, train=False)
    pooled = np.asarray(outputs.features["pooled"])
    for name in MECHANISMS:
        layer = variables["params"]["head"][name]
        np.testing.assert_allclose(
            outputs.mechanisms[name],
            pooled @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"]),
            rtol=1e-4,
            atol=1e-5,
        )
    np.testing.assert_allclose(outputs.whole, sum(outputs.mechanisms.values()) / 3, rtol=1e-5)
    with pytest.raises(InputError, match="'mechanisms' has no branches for patches"):
        catalogue.create_model("cnn_mnist", 5, image_size=32, head="mechanisms", attention="self").init(
            jax.random.key(0), views, train=False
        )


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_norms_keep_their_statistics_and_train_their_scales(rng, frozen):
    model = catalogue.create(catalogue.Model("cnn_mnist", "mechanisms", frozen_norms=frozen), 3, 32)
    objective = invariant.InvariantObjective(
        loss=losses.cross_entropy, names=invariant.LOSSES, patching=Whole(2), pooling=POOLINGS["pivot"]
    )
    run = Training(model, (1, 1, 32, 32, 3), objective, optax.sgd(0.1), mesh=mesh_of(), ema_decay=0.5).start()
    before = jax.tree.map(np.asarray, run.variables)
    batch = mixed_batch([False, True] * 2, [[0, 1, 2]] * 4, labels=[0, 1, 2, 0])
    views = rng.integers(0, 256, (4, 1, 32, 32, 3)).astype(np.uint8)
    assert run.update(jax.tree.map(np.asarray, batch) | {"views": views}) == -1
    after = jax.tree.map(np.asarray, run.variables)
    same = [
        np.array_equal(*pair)
        for pair in zip(*map(jax.tree.leaves, (before["batch_stats"], after["batch_stats"])))
    ]
    assert all(same) if frozen else not any(same)
    scales = [each["params"]["backbone"]["bn"]["scale"] for each in (before, after)]
    assert not np.array_equal(*scales)


def test_the_method_brings_its_head():
    config = configuration()
    assert config.model.head == "mechanisms"
    assert configs.unused(config) == []
    assert isinstance(build.create(config, 10).model.head, MechanismHead)
    stored = configs.from_json(configs.to_json(config))
    assert stored.to_dict() == config.to_dict()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"task": "multi_label", "loss.name": "asymmetric"}, "method 'invariant' is for task 'single_label'"),
        ({"model.head": "causal_norm"}, "set config.model.head to 'mechanisms', not 'causal_norm'"),
        (
            {"method": "whole", "model.head": "mechanisms"},
            "'mechanisms' is for method 'invariant', not 'whole'",
        ),
        ({"loss.name": "weighted_cross_entropy"}, "weighs an image by the others of its batch.*or 'focal'"),
        ({"effect.kinds": ("pivot",)}, "method 'invariant' has no patches: remove 'pivot'"),
        (
            {"data.counterfactuals.share": 1.5},
            r"config.data.counterfactuals.share is 1.5; it must be in \[0, 1\]",
        ),
    ],
)
def test_what_does_not_go_together(fields, message):
    with pytest.raises(InputError, match=message):
        configuration(**fields)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "trains its heads on generated records: set config.data.counterfactuals.path"),
        ({"path": "a", "share": 0.0}, "trains its heads on generated records"),
        ({"path": "a", "share": 0.3}, r"share 0.3 of train.batch_size 16 is 4.8 images; .* such as 5/16"),
    ],
)
def test_what_cannot_train(fields, message):
    config = configuration(**{f"data.counterfactuals.{name}": value for name, value in fields.items()})
    with pytest.raises(InputError, match=message):
        configs.require_trainable(config)


def test_fields_without_use():
    fields = {"method": "whole", "data.counterfactuals.share": 0.25}
    assert configs.unused(configuration(**fields)) == ["data.counterfactuals.share"]
    fields |= {"data.counterfactuals.share": 0.0, "data.counterfactuals.path": "a"}
    assert configs.unused(configuration(**fields)) == ["data.counterfactuals.path"]


def opened(folder, **fields):
    fields = {"data.counterfactuals.path": str(folder)} | fields
    source = LongTailedDigits("train", most=8, ratio=1.0)
    return build.open_counterfactuals(configuration(**fields), source, lambda line: None)


def test_generated_records_are_opened_with_their_share(records):
    assert opened(records).per_batch == 8
    assert opened(records, **{"data.counterfactuals.share": 1.0}).per_batch == 16
    assert opened(records, **{"data.counterfactuals.share": 0.0}) is None
    assert opened("") is None


def test_records_that_do_not_fit_the_real_images(tmp_path):
    names = [f"class {i}" for i in range(10)]
    with pytest.raises(InputError, match=r"class 0 is '.*' in LongTailed.* and 'class 0' in Counterfactuals"):
        opened(generate(tmp_path / "names", names=names))
    more = (*LongTailedDigits.class_names, "ten")
    with pytest.raises(InputError, match=r"class 10 is none in LongTailed.* and 'ten' in Counterfactuals"):
        opened(generate(tmp_path / "more", names=more))
    large = generate(tmp_path / "large", size=64)
    with pytest.raises(InputError, match=r"images of 64 pixels, but .* views.image_size, 32; generate them"):
        opened(large)
    assert opened(large, **{"views.transform": "area_crop"}).source.image_size == 64


def test_epochs_without_a_full_batch(records):
    source = LongTailedDigits("train", most=8, ratio=1.0)
    config = configuration(
        **{
            "data.counterfactuals.path": str(records),
            "data.counterfactuals.share": 1.0,
            "train.batch_size": 64,
        }
    )
    generated = build.open_counterfactuals(config, source, lambda line: None)
    with pytest.raises(
        InputError, match=r"80 images and 40 generated records, fewer than a batch of .* 64 needs"
    ):
        build.steps_per_epoch(config, source, generated)


def made(folder, **fields):
    fields = {"data.counterfactuals.path": str(folder)} | fields
    config = configuration(**fields)
    train_source = LongTailedDigits("train", most=8, ratio=1.0)
    generated = build.open_counterfactuals(config, train_source, lambda line: None)
    return train._Training(config, train_source, LongTailedDigits("val", num_test=4), generated)


def test_a_checkpoint_knows_its_generated_records(records, tmp_path):
    training = made(records)
    meta = training._meta()
    assert set(meta["data"]) == {"train", "val", "counterfactuals"}
    shutil.copytree(records, tmp_path / "moved")
    made(tmp_path / "moved")._require_same_data("7", meta)
    other = made(generate(tmp_path / "other", seed=1))
    with pytest.raises(InputError, match="counterfactuals has other images, or another order"):
        other._require_same_data("7", meta)
    without = made("", method="whole")
    with pytest.raises(InputError, match=r"generated records were removed, by config\.data\.counterfactuals"):
        without._require_same_data("7", meta)
    for older in (
        without._meta(),
        {name: value for name, value in without._meta().items() if name != "data"},
    ):
        with pytest.raises(
            InputError, match=r"generated records were added, by config\.data\.counterfactuals"
        ):
            training._require_same_data("7", older)


def test_a_resumed_run_may_find_its_records_elsewhere_but_not_share_them_otherwise():
    old, new = (
        configs.to_json(configuration(**{"data.counterfactuals.path": path})) for path in ("one", "other")
    )
    assert configs.differences(old, new) == []
    new["data"]["counterfactuals"]["share"] = 0.25
    assert configs.differences(old, new) == ["data.counterfactuals.share: 0.5 -> 0.25"]


def run(workdir, records, *flags):
    arguments = [
        f"--config={CONFIG}",
        f"--config.data.counterfactuals.path={records}",
        f"--workdir={workdir}",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["main", *arguments, *flags])
        return main.main()


def final(workdir):
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(
            workdir / "checkpoints" / str(LAST),
            args=ocp.args.Composite(model=ocp.args.StandardRestore(), training=ocp.args.StandardRestore()),
        )
    return restored.model, restored.training


@pytest.fixture(scope="module")
def trained(records, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "run"
    assert run(workdir, records) == 0
    return workdir


def test_a_run_has_the_accuracies_of_every_head_and_a_report(trained):
    results = json.loads((trained / "report" / "results.json").read_text())
    assert set(results["test"]["average"]["metrics"]) == {"whole", *MECHANISMS, "shape_texture"}
    with np.load(trained / "report" / "scores_test_average.npz") as scores:
        scores = dict(scores)
    heads = [scores[name] for name in MECHANISMS]
    np.testing.assert_allclose(scores["whole"], sum(heads) / 3, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(scores["whole"], scores["combined"])
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    logged = next(line for line in lines if "train/loss" in line)
    assert {f"train/{name}" for name in invariant.LOSSES} <= logged.keys()
    parts = [logged[f"train/{name}"] for name in invariant.LOSSES]
    assert logged["train/loss"] == pytest.approx(sum(parts), rel=1e-5)
    rates = [line["train/lr"] for line in lines if "train/lr" in line]
    assert (rates[0], rates[-1]) == (1, pytest.approx(0.7))
    page = (trained / "report" / "index.html").read_text(encoding="utf-8")
    for words in ("texture head", "shape and texture heads", "a head for each mechanism"):
        assert words in page


def test_a_killed_run_ends_as_one_that_never_was(trained, records, tmp_path, monkeypatch):
    read = train._Training._batches

    def signalled(training, from_step, print_line):
        for number, batch in enumerate(read(training, from_step, print_line), 1):
            if number == 7:
                os.kill(os.getpid(), signal.SIGTERM)
            yield batch

    monkeypatch.setattr(train._Training, "_batches", signalled)
    assert run(tmp_path / "run", records, "--config.data.workers=2") == 143
    monkeypatch.undo()
    shutil.copytree(records, tmp_path / "moved")
    assert run(tmp_path / "run", tmp_path / "moved") == 0
    jax.tree.map(np.testing.assert_array_equal, final(tmp_path / "run"), final(trained))
    # And other records are refused.
    other = generate(tmp_path / "other", seed=1)
    assert run(tmp_path / "run", other) == 1


def test_a_checkpoint_is_evaluated_and_predicts(trained, tmp_path, capsys):
    shutil.copytree(checkpoints.find(trained), tmp_path / "alone")
    opened_classifier = opening.open(tmp_path / "alone")
    assert set(opened_classifier.model["variables"]["params"]["head"]) == set(MECHANISMS)
    with pytest.MonkeyPatch.context() as patch:
        arguments = [f"--checkpoint={tmp_path / 'alone'}", f"--workdir={tmp_path / 'again'}"]
        patch.setattr(sys, "argv", ["main", "--mode=evaluate", *arguments])
        assert main.main() == 0
    again, before = (
        json.loads((folder / "report" / "results.json").read_text())
        for folder in (tmp_path / "again", trained)
    )
    for name, values in before["test"]["average"]["metrics"].items():
        assert again["test"]["average"]["metrics"][name] == pytest.approx(values, nan_ok=True)
    image = LongTailedDigits("test", num_test=4)[0]["image"]
    loaded = {
        kind: cfmlc_jax.load(tmp_path / "alone", prediction=kind)
        for kind in ("combined", "texture", "shape_texture")
    }
    probabilities = [each.predict(image)[0].probabilities for each in loaded.values()]
    for each in probabilities:
        np.testing.assert_allclose(np.sum(each), 1, rtol=1e-5)
    assert len({tuple(np.asarray(each)) for each in probabilities}) == 3
    Image.fromarray(image).save(tmp_path / "digit.png")
    capsys.readouterr()
    arguments = [
        str(tmp_path / "digit.png"),
        f"--checkpoint={trained}",
        "--format=jsonl",
        "--prediction=background",
    ]
    assert predict.main(arguments) == 0
    assert len(json.loads(capsys.readouterr().out)["labels"]) == 1


def test_other_classifiers_have_no_such_heads(trained, records, tmp_path):
    workdir = tmp_path / "plain"
    flags = ("--config.method=whole", "--config.data.counterfactuals.share=1.0", "--config.train.epochs=1")
    assert run(workdir, records, *flags) == 0
    assert (workdir / "checkpoints" / "2").is_dir()  # an epoch is of the 40 generated records
    with pytest.raises(InputError, match="trained as 'whole', without a head for each mechanism"):
        cfmlc_jax.load(workdir, prediction="shape")
    config = configs.from_json(json.loads((workdir / "config.json").read_text()))
    with pytest.raises(InputError, match=r"of another model \(model.head: 'mechanisms' -> 'linear'\)"):
        opening.open(checkpoints.find(trained), config)
