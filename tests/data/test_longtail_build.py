"""Names of the configuration to long-tailed sources, and what it refuses."""

import pytest

from cfmlc_jax import config as configs
from cfmlc_jax.data import build
from cfmlc_jax.data.sources.long_tailed_digits import LongTailedDigits
from cfmlc_jax.errors import InputError


def data(source, **longtail):
    config = configs.default()
    config.data.source = source
    config.data.longtail.update(longtail)
    return configs.validate(config).data


def test_digits_by_their_fields():
    source = build.source(
        data("long_tailed_digits", largest=20, ratio=0.5, imbalance="step", subset_seed=3), "train"
    )
    assert repr(source) == repr(LongTailedDigits("train", most=20, ratio=0.5, kind="step", seed=3))
    assert source.class_counts.tolist() == [20] * 5 + [10] * 5


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar10_lt", r"no CIFAR-10 in it; download https://www\.cs\.toronto\.edu/~kriz/cifar-10-python"),
        ("cifar100_lt", r"no CIFAR-100 in it; download https://www\.cs\.toronto\.edu/~kriz/cifar-100-python"),
        ("imagenet_lt", r"ImageNet_LT_train\.txt: No such file"),
        ("places_lt", r"Places_LT_train\.txt: No such file"),
    ],
)
def test_data_sets_look_in_their_places(name, message, tmp_path, monkeypatch):
    monkeypatch.setenv(build.ROOT_VARIABLE, str(tmp_path))
    with pytest.raises(InputError, match=message) as error:
        build.source(data(name), "train")
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"imbalance": "exp"}, "config.data.longtail.imbalance 'exp' is not one of exponential, step"),
        ({"ratio": 0.0}, r"config.data.longtail.ratio is 0.0; it must be above 0 and at most 1"),
        ({"ratio": 1.5}, r"config.data.longtail.ratio is 1.5"),
        ({"ratio": float("nan")}, r"config.data.longtail.ratio is nan"),
        ({"subset_seed": -1}, "config.data.longtail.subset_seed is -1; it must be at least 0"),
        ({"largest": 0}, "config.data.longtail.largest is 0; it must be at least 1"),
    ],
)
def test_tails_that_the_configuration_refuses(fields, message):
    with pytest.raises(InputError, match=message):
        data("long_tailed_digits", **fields)
