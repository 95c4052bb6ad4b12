"""Results of multi-label images: there and back, and what is refused."""

import json

import numpy as np
import pytest

from cfmlc_jax.metrics import localization
from cfmlc_jax.results import multi_label
from cfmlc_jax.results.json_types import FormatError
from cfmlc_jax.results.multi_label import Findings, MultiLabelResults
from cfmlc_jax.results.scores import Scores
from cfmlc_jax.results.split import WEIGHTS, RuleOfThumb

RATES = localization.Rates(3, 50.0, 25.0, 100.0, 40.0, 25.0, 80.0)


@pytest.fixture(scope="module")
def results():
    rng = np.random.default_rng(0)
    labels = (rng.random((60, 3)) < 0.5).astype(np.uint8)
    logits = {
        name: rng.normal(size=labels.shape).astype(np.float32) for name in ("whole", "combined", "null_pivot")
    }
    scores, alphas, pairs = Scores(logits, labels), (0.5,), [[0, 1], [2, 0]]
    located = multi_label.Localization(RATES, {"small": RATES}, {"within": RATES}, {"a": RATES}, True, 2, 1)
    findings = Findings(
        multi_label.intervals(scores, alphas, rng),
        multi_label.context(scores, alphas, pairs, rng),
        located,
        RuleOfThumb(0.5, 2.0),
    )
    return MultiLabelResults(dict.fromkeys(WEIGHTS, multi_label.measures(scores, alphas)), findings)


def fields_of(results):
    return json.loads(json.dumps(results.to_json()))


def test_results_are_read_back(results):
    fields = fields_of(results)
    read = MultiLabelResults.from_json(fields, "val")
    # As text, for a metric may be NaN.
    assert json.dumps(read.to_json()) == json.dumps(results.to_json())
    assert read.findings == results.findings
    assert list(fields["average"]["metrics"]) == ["whole", "combined", "tde_pivot_0.5"]
    assert fields["average"]["classes"] == {"with_positives": 3, "all": 3}
    assert len(fields["average"]["context"]["predictions"]["whole"]["by_pair"]) == 2
    assert fields["average"]["localization"]["by_class"]["a"]["hit"] == 50.0


def test_results_of_an_older_version_are_read(results):
    fields = fields_of(results)
    fields["average"]["company"] = fields["average"].pop("context")
    del fields["weights"]["classes"]
    read = MultiLabelResults.from_json(fields, "val")
    assert read.findings == results.findings
    assert read.measures["weights"].classes is None


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("weights metrics combined OF1", "val.weights.metrics.combined has no 'OF1'"),
        ("average thresholds whole", "val.average.thresholds has no 'whole'"),
        ("average intervals predictions tde_pivot_0.5", "val.average.intervals.predictions has no 'tde_pivot_0.5'"),
        ("average intervals predictions whole mAP_voc", "val.average.intervals.predictions.whole has no 'mAP_voc'"),
        ("average intervals predictions whole gain_voc", "val.average.intervals.predictions.whole.gain has no 'voc'"),
        ("average context predictions whole", "val.average.context.predictions has no 'whole'"),
        ("average localization by_size", "val.average.localization has no 'by_size'"),
        ("average localization", "val.average has no 'localization'"),
    ],
)  # fmt: skip
def test_missing_fields_are_named(results, place, message):
    fields = fields_of(results)
    *path, last = place.split()
    inner = fields
    for name in path:
        inner = inner[name]
    del inner[last]
    with pytest.raises(FormatError, match=f"^{message}$"):
        MultiLabelResults.from_json(fields, "val")
