import dataclasses

import numpy as np
import pytest

from cfmlc_jax.data.sources.checks import require_disjoint, summary
from cfmlc_jax.errors import InputError


@dataclasses.dataclass
class Fake:
    class_names: tuple[str, ...]
    labels: np.ndarray
    ids: list[str]

    def __len__(self):
        return len(self.ids)

    def __getitem__(self, index):
        raise AssertionError("a check must not read an image")

    def __repr__(self):
        return f"Fake({len(self)})"


def fake(ids, labels=None, names=("cat", "dog", "eel")):
    labels = np.zeros((len(ids), len(names)), np.uint8) if labels is None else np.array(labels, np.uint8)
    return Fake(names, labels, ids)


def test_summary_names_the_rarest_and_the_commonest_class():
    labels = [[1, 0, 1], [1, 1, 1], [1, 0, 0], [1, 0, 0]]
    text = summary("train", fake(["d", "a", "c", "b"], labels))
    assert text.splitlines() == [
        "train: 4 images, 3 classes, 1.75 labels an image",
        "  positives a class: min 1 (dog), median 2, max 4 (cat)",
        "  first ids: d, a, c",
    ]


def test_summary_counts_beyond_uint8():
    assert "max 300 (cat)" in summary("train", fake([str(i) for i in range(300)], [[1, 0, 1]] * 300))


def test_summary_names_classes_without_positives():
    names = tuple("abcdefgh")
    text = summary("val", fake(["x"], [[1, 0, 0, 0, 0, 0, 0, 1]], names))
    assert "  without a positive: 6 (b, c, d, e, f, …)" in text.splitlines()
    assert "  without a positive: 1 (dog)" in summary("val", fake(["x"], [[1, 0, 1]])).splitlines()


def test_disjoint_sources_pass_and_shared_ids_are_named():
    a = fake(["1", "2", "30", "4"])
    require_disjoint(a, fake(["3", "22"]))
    with pytest.raises(
        InputError, match=r"2 images are in both Fake\(4\) and Fake\(3\), first 2, 30; remove them"
    ):
        require_disjoint(a, fake(["30", "5", "2"]))
