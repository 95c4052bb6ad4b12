"""Region features of torchvision's Faster R-CNN, with random weights on small images."""

import json

import numpy as np
import pytest
from PIL import Image

from cfmlc_jax.data.regions.records import RegionRecords

SCRIPT = "torchvision_regions"
torch = pytest.importorskip("torch")
detection = pytest.importorskip("torchvision.models.detection")
SIZE = 96


@pytest.fixture(scope="module")
def detector():
    torch.manual_seed(0)
    model = detection.fasterrcnn_mobilenet_v3_large_fpn(
        weights=None,
        weights_backbone=None,
        num_classes=4,
        min_size=64,
        max_size=64,
        rpn_post_nms_top_n_test=20,
    )
    return model.eval()


@pytest.fixture
def images(tmp_path, rng):
    (tmp_path / "val2017").mkdir()
    for i in (7, 8):
        pixels = rng.integers(0, 256, (SIZE, SIZE, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "val2017" / f"{i}.png")
    content = {
        "categories": [
            {"id": 1, "name": "cat", "frequency": "r", "image_count": 0},
            {"id": 5, "name": "dog", "frequency": "r", "image_count": 1},
        ],
        "images": [
            {
                "id": i,
                "coco_url": f"http://x/val2017/{i}.png",
                "neg_category_ids": [],
                "not_exhaustive_category_ids": [],
            }
            for i in (8, 7)
        ],
        "annotations": [{"id": 1, "image_id": 8, "category_id": 5, "bbox": [10, 20, 40, 50]}],
    }
    (tmp_path / "lvis.json").write_text(json.dumps(content))
    return tmp_path


def run(script, folder, split, *more):
    words = (f"--images={folder}", f"--annotations={folder / 'lvis.json'}", f"--out={folder / split}")
    return script.main([*words, f"--split={split}", "--model=fasterrcnn_mobilenet_v3_large_fpn", *more])


def test_records_of_a_detector(script, images, detector, monkeypatch):
    monkeypatch.setattr(script, "create", lambda name, weights, device: detector)
    assert run(script, images, "train", "--dtype=float32") == 0
    assert run(script, images, "val", "--maps") == 0
    train, val = RegionRecords(images / "train"), RegionRecords(images / "val")
    assert (train.shape, train.stages, train.labelled) == ((1024,), 1, True)
    assert (val.shape, val.labelled) == ((7, 7, 256), False)
    assert train.image_ids.tolist() == [7, 8]
    # The annotated box is the last region of its image, with its class; it is not proposed in the other split.
    assert train.counts[1] == val.counts[1] + 1
    assert train[1].labels[-1, 0] == 1
    assert (train[0].labels == 2).all()
    for regions in (train[1], val[0]):
        assert regions.boxes.min() >= 0
        assert SIZE / 2 < regions.boxes.max() <= SIZE + 1e-3
    # The features after the shared layers are those of the maps.
    pooled = torch.from_numpy(np.array(val[0].features[:, 0], np.float32)).permute(0, 3, 1, 2)
    with torch.no_grad():
        shared = detector.roi_heads.box_head(pooled).numpy()
    np.testing.assert_allclose(train[0].features[:, 0], shared, atol=2e-2 * np.abs(shared).max())


def test_what_cannot_be_used(script, images, detector, capsys):
    torch.save({"a": torch.zeros(1)}, images / "other.pt")
    (images / "broken.pt").write_bytes(b"PK")
    for more, message in (
        ([f"--weights={images / 'other.pt'}"], "other.pt are not of fasterrcnn_mobilenet_v3_large_fpn"),
        ([f"--weights={images / 'broken.pt'}"], "broken.pt cannot be read"),
        (["--release=v1"], "has 2 categories, LVIS v1 has 1,203"),
    ):
        assert run(script, images, "train", *more) == 1
        err = capsys.readouterr().err
        assert len(err.splitlines()) == 1
        assert message in err
    torch.save(detector.state_dict(), images / "good.pt")
    (images / "val2017" / "7.png").unlink()
    assert run(script, images, "train", f"--weights={images / 'good.pt'}") == 1
    assert "7.png cannot be read" in capsys.readouterr().err
