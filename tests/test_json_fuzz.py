"""JSON from elsewhere: whatever it is, there is a value or an InputError of one line, never another exception."""

import json

import pytest
from fuzzing import cases, mutated, value_or_line
from hypothesis import given

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax import weights_folder
from cfmlc_jax.config import workdir as workdirs
from cfmlc_jax.data.sources import counterfactuals
from cfmlc_jax.engine import writers
from cfmlc_jax.results import read
from cfmlc_jax.weights import fetch
from cfmlc_jax.weights import read as weights_read

DEEP = "[" * 100_000
HUGE = "1" * 5_000  # Python refuses to read such a number
BYTES = (
    b"",
    b"\xff",
    b"null",
    b"[]",
    b"{",
    b"NaN",
    DEEP.encode(),
    HUGE.encode(),
    b'{"a": 1}\n' * 2,
    b'"\\ud800"',
)

DEFAULT = configs.to_json(configs.default())


@cases(60)
@given(mutated(DEFAULT))
def test_a_stored_configuration(stored):
    value_or_line(configs.from_json, stored)


INDEX = {
    "class_names": ["a", "b"],
    "mechanisms": ["shape", "texture", "background"],
    "records": 2,
    "shards": [2],
    "image_size": 8,
}


@cases(60)
@given(document=mutated(INDEX))
def test_an_index_of_records(tmp_path_factory, document):
    folder = tmp_path_factory.getbasetemp()
    (folder / counterfactuals.INDEX).write_text(json.dumps(document))
    value_or_line(counterfactuals._read_index, folder)


META = {"config": {}, "class_names": ["a"], "num_classes": 1, "format": 1, "version": "0.1.0"}


@cases(60)
@given(document=mutated(META))
def test_the_meta_of_a_folder(tmp_path_factory, document):
    folder = tmp_path_factory.getbasetemp() / "folder"
    folder.mkdir(exist_ok=True)
    (folder / weights_folder.WEIGHTS).touch()
    (folder / weights_folder.CONFIG).write_text(json.dumps(document))
    meta = value_or_line(checkpoints.read_meta, folder)
    if meta is not None:

        def use():
            with checkpoints.understanding(folder, meta):
                configs.system(meta["config"])
                configs.from_json(meta["config"])

        value_or_line(use)


@pytest.mark.parametrize("content", BYTES, ids=lambda content: repr(content[:9]))
def test_any_bytes_in_place_of_json(tmp_path, content):
    for name in (
        *(counterfactuals.INDEX, weights_folder.CONFIG, weights_folder.WEIGHTS, "rank.json", "metrics.jsonl"),
        *("results.json", "evidence.json", "model.bin"),
    ):
        (tmp_path / name).write_bytes(content)
    value_or_line(counterfactuals._read_index, tmp_path)
    value_or_line(checkpoints.read_meta, tmp_path)
    value_or_line(weights_folder.shapes, tmp_path)
    assert "rank" not in checkpoints._progress(tmp_path)
    assert weights_read.expected(tmp_path / "model.bin", None) is None
    assert fetch.file_in(tmp_path) is not None
    value_or_line(writers.read_lines, tmp_path / "metrics.jsonl")
    value_or_line(read._json, tmp_path / "results.json")
    value_or_line(read._config, tmp_path / "config.json")
    value_or_line(workdirs._fields, tmp_path / "config.json")
