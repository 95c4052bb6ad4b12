"""`data.on_error` "skip": a run over images of which some cannot be read."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cfmlc_jax import config as configs
from cfmlc_jax.data.unreadable import Unreadable
from cfmlc_jax.data.views.patches import ToViews
from cfmlc_jax.errors import InputError

CONFIG = f"--config={Path(__file__).parents[1] / 'configs' / 'own_images.py'}"
SMALL = [
    "--config.method=whole", "--config.model.name=resnet_small",
    "--config.views.image_size=16", "--config.train.batch_size=8", "--config.evaluate.batch_size=8",
    "--config.train.epochs=2", "--config.effect.kinds=('whole',)", "--config.effect.alphas=(1.0,)",
]  # fmt: skip


@pytest.fixture
def photos(tmp_path):
    """Sixteen photos a split, of which train3, val0 and val15 are damaged."""
    root = tmp_path / "photos"
    root.mkdir()
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for i in range(16):
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(root / f"{split}{i}.jpg")
        lines = [f"{split}{i}.jpg,{'cat' if i % 2 else 'cat;dog'}\n" for i in range(16)]
        (root / f"{split}.csv").write_text("".join(lines))
    for name in ("train3", "val0", "val15"):
        photo = root / f"{name}.jpg"
        photo.write_bytes(photo.read_bytes()[:400])
    return root


def test_a_run_reports_and_skips_unreadable_images(command, photos):
    arguments = [CONFIG, f"--config.data.root={photos}", "--workdir=run", *SMALL]
    code, out, err = command(*arguments, "--config.data.on_error=skip")
    assert code == 0, err
    lines = err.splitlines()
    named = [line for line in lines if "skipped: " in line]
    for split, name in (("train", "train3"), ("val", "val0"), ("val", "val15")):
        assert (
            len([line for line in named if line.startswith(f"{split}: skipped: {photos / name}.jpg: ")]) == 1
        )
    assert len(named) == 3
    assert lines.count("train: 1 of 16 images cannot be read and are skipped") == 2  # after each epoch
    assert "val: 2 of 16 images cannot be read and are skipped" in out
    assert "val: 14 images scored, each once" in out
    with np.load("run/report/scores_val_average.npz") as scores:
        assert len(scores["combined"]) == 14
        assert scores["labels"].tolist() == [[1, int(i % 2 == 0)] for i in range(1, 15)]
    shown = json.loads(Path("run/report/evidence.json").read_text())["examples"]["val"]
    assert not {"val0.jpg", "val15.jpg"} & {image["id"] for images in shown.values() for image in images}


class Broken:
    """Two images at three positions, none of which can be read."""

    class_names = ("a",)
    ids = ("x", "y", "x")
    labels = np.ones((3, 1), np.uint8)

    def __len__(self):
        return 3

    def __getitem__(self, index):
        return {
            "image": b"",
            "labels": self.labels[index],
            "id": self.ids[index],
            "where": f"{self.ids[index]}.jpg",
        }


def test_each_unreadable_image_is_reported_once():
    unreadable = Unreadable(Broken(), ToViews(size=8))
    assert unreadable.report() == []
    unreadable.add(np.array([-1, 2, -1, 0], np.int32))
    first = unreadable.report()
    assert len(first) == 2
    assert first[0].startswith("skipped: x.jpg: the file is empty")
    assert first[1] == "1 of 2 images cannot be read and are skipped"
    unreadable.add(np.array([1, 2], np.int32))
    assert [line.partition(":")[0] for line in unreadable.report()] == [
        "skipped",
        "2 of 2 images cannot be read and are skipped",
    ]


def test_on_error_is_checked_and_may_change_when_a_run_resumes():
    config = configs.default()
    config.data.on_error = "ignore"
    with pytest.raises(InputError, match=r"config.data.on_error 'ignore' is not one of stop, skip"):
        configs.validate(config)
    stop, skip = configs.to_json(configs.default()), configs.to_json(configs.default())
    skip["data"]["on_error"] = "skip"
    assert configs.differences(stop, skip) == []
