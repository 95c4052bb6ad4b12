"""The published configurations of digits' generators, and what a run without their files reports."""

from pathlib import Path

import pytest

from cfmlc_jax import config as configs
from cfmlc_jax import main as command
from cfmlc_jax.config import recipes
from cfmlc_jax.data import build as data
from cfmlc_jax.errors import InputError
from cfmlc_jax.models.generators import critics

CONFIGS = Path(__file__).parents[2] / "configs"
# Published by look: initialiser, gain, weights of entropy and style, critic and its width.
PUBLISHED = {
    "colored": ("orthogonal", 0.1, 0.1, (0.05, 0.1, 0.01, 0.0), critics.LinearCritic, 512),
    "double_colored": ("orthogonal", 0.2, 0.3, (0.0, 0.05, 0.0, 0.05), critics.LinearCritic, 512),
    "wildlife": ("normal", 0.03, 0.3, (0.01, 0.05, 0.0, 0.01), critics.ConvCritic, 32),
}


def load(file, variant=""):
    argument = f"--config={CONFIGS / file}.py" + (f":{variant}" if variant else "")
    return command.parse(command.define_flags(), ["main", argument])


@pytest.mark.parametrize("look", PUBLISHED)
def test_values_are_the_published_ones(look):
    config = load("cgn_mnist", look)
    generator, critic, loss = config.generator, config.critic, config.loss
    module = critics.CRITICS[critic.name](10, critic)
    values = (generator.init, generator.gain, loss.entropy, loss.style, type(module), module.ndf)
    assert values == PUBLISHED[look]
    assert (generator.latent, generator.ngf, critic.dropout) == (32, 32, 0.4)
    optim = config.optim
    assert (optim.learning_rate, optim.b1, optim.b2) == (2e-4, 0.5, 0.999)
    assert optim.clip == optim.ema_decay == 0
    assert (config.train.batch_size, config.train.epochs) == (16, 15)
    records = config.counterfactuals
    assert (records.num_records, records.per_shape) == (100_000, 10)
    assert (config.classifiers.epochs, config.classifiers.batch_size) == (10, 64)
    assert config.data.source == f"{look}_mnist"
    assert config.loss.features == "vgg16"


def test_double_colours_are_the_default():
    assert load("cgn_mnist") == load("cgn_mnist", "double_colored")
    assert recipes.cgn_digits("") == configs.default("cgn")


@pytest.mark.parametrize("variant", ["colored", "wildlife"])
def test_embedded_variants_need_no_files(variant):
    config = load("cgn_digits", variant)
    assert config.data.source == f"{variant}_digits"
    assert config.loss.features == "random"
    assert config.critic.name == "projection"


@pytest.mark.parametrize("file", ["cgn_mnist", "cgn_digits", "cgn_scenes"])
def test_unknown_variants_are_refused(file):
    with pytest.raises(
        InputError, match=r"(variant 'striped' is not one of .*wildlife|no variant 'striped'; leave it out)"
    ):
        load(file, "striped")


@pytest.mark.parametrize("look", PUBLISHED)
def test_missing_digits_are_reported_with_their_place(look, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CFMLC_DATA", raising=False)
    with pytest.raises(
        InputError, match=r"^neither data/mnist/train-images-idx3-ubyte nor .*; download .*into data"
    ):
        data.mechanism_source(load("cgn_mnist", look).data, "train")
