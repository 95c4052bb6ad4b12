"""The schema: checks across fields, JSON round trip, what may change between a run and its continuation."""

import pytest

from cfmlc_jax import config as configs
from cfmlc_jax.errors import InputError


def changed(**fields):
    config = configs.default()
    for name, value in fields.items():
        section, _, leaf = name.replace("__", ".").rpartition(".")
        target = config
        for part in section.split(".") if section else []:
            target = target[part]
        target[leaf] = value
    return config


def test_the_default_is_valid_and_gets_locked():
    config = configs.validate(configs.default())
    with pytest.raises(AttributeError):
        config.optim.learning_rat = 1.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"data__source": "coc"}, "config.data.source 'coc' is not one of .*did you mean 'coco'"),
        ({"method": "pat"}, "config.method 'pat' is not one of pat_t, pat_i, asl"),
        ({"model__dtype": "float16"}, "config.model.dtype 'float16' is not one of float32, bfloat16"),
        ({"model__attention": "none"}, "method 'pat_t' needs model.attention 'self' or 'cross'"),
        (
            {"model__head": "mldecoder"},
            "config.model.head 'mldecoder' is not one of .*did you mean 'ml_decoder'",
        ),
        ({"model__groups": 0}, "config.model.groups is 0; it must be at least 1"),
        ({"method": "pat_i"}, "method 'pat_i' has one head"),
        ({"method": "asl", "model__attention": "none"}, "take 'pivot' out of effect.kinds"),
        ({"effect__null": "black"}, "config.effect.null 'black' is not one of zeros, mean, blur"),
        ({"effect__kinds": ("hole",)}, "config.effect.kinds 'hole' is not one of"),
        ({"effect__alphas": (0.5, -1.0)}, "config.effect.alphas has -1.0"),
        ({"views__grids": (1,)}, "config.views.grids has 1; grids must be whole numbers of 2 or more"),
        ({"train__null_rate": 1.5}, r"config.train.null_rate is 1.5; it must be in \[0, 1\]"),
        ({"train__null": "noise"}, "config.train.null 'noise' is not one of zeros, mean, blur"),
        ({"views__grids": ()}, "config.views.grids is empty; give at least one number"),
        ({"views__grids": (2, 1.5)}, "config.views.grids has 1.5; grids must be whole numbers"),
        ({"views__grids": (500, 2)}, "views.grids 500 cuts views of 448 pixels into patches of none"),
        (
            {"model__cells": "layer1", "method": "pat_i", "model__attention": "none"},
            "leave it empty for 'pat_i'",
        ),
        ({"model__cells": "layer1"}, "take 'pivot' out of effect.kinds"),
        ({"model__pooling": "exklusive"}, "did you mean 'exclusive'?"),
        ({"views__grids": (3,)}, "448 is not divisible by views.grids 3; try 447 or 450"),
        ({"views__image_size": 0}, "config.views.image_size is 0; it must be at least 1"),
        ({"views__image_size": -448}, "must be at least 1"),
        ({"views__overlap": 1.0}, r"config.views.overlap is 1.0; it must be in \[0, 0.95\]"),
        ({"train__batch_size": 0}, "config.train.batch_size is 0"),
        ({"train__epochs": -1}, "config.train.epochs is -1"),
        ({"optim__learning_rate": 0.0}, "config.optim.learning_rate is 0.0; it must be above 0"),
        ({"optim__learning_rate": float("nan")}, "config.optim.learning_rate is nan"),
        ({"optim__ema_decay": 1.5}, r"config.optim.ema_decay is 1.5; it must be in \[0, 1\]"),
        ({"data__scenes__bias": 2.0}, "config.data.scenes.bias is 2.0"),
        ({"model__norm_groups": 0}, "config.model.norm_groups is 0; it must be at least 1"),
        (
            {"model__norm_groups": 3},
            "batch_size 128 is not divisible by config.model.norm_groups 3; try 126 or 129",
        ),
    ],
)
def test_fields_that_cannot_be(fields, message):
    with pytest.raises(InputError, match=message):
        configs.validate(changed(**fields))


def test_json_round_trip():
    config = configs.validate(changed(effect__alphas=(0.1, 2.0), data__source="scenes"))
    assert configs.from_json(configs.to_json(config)) == config


def test_a_field_of_another_version_is_named():
    fields = configs.to_json(configs.default())
    fields["optim"]["nesterov"] = 0.9
    with pytest.raises(InputError, match=r"config.optim.nesterov is not a field"):
        configs.from_json(fields)


def test_what_a_continuation_may_change():
    old = configs.to_json(configs.default())
    new = configs.to_json(
        changed(data__workers=2, effect__null="zeros", report__tensorboard=True, data__root="/elsewhere")
    )
    assert configs.differences(old, new) == []
    new = configs.to_json(changed(optim__learning_rate=1.0, train__epochs=3))
    assert configs.differences(old, new) == ["optim.learning_rate: 0.0001 -> 1.0", "train.epochs: 80 -> 3"]
