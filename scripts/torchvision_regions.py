"""Writes region features of torchvision's Faster R-CNN, for configs/longtail_lvis.py.

    python scripts/torchvision_regions.py --images=data/coco2017 --annotations=lvis_v1_train.json --release=v1 --out=regions/train --split=train
    python scripts/torchvision_regions.py --images=data/coco2017 --annotations=lvis_v1_val.json --release=v1 --out=regions/val --split=val

For each annotated image the detector proposes regions. Their features are stored, after its two shared layers, or with --maps
as pooled maps [7, 7, 256]; and their boxes, moved by the regression of the object class that the detector holds most probable.
In the training split the annotated boxes are regions too, and each region has the label of the object that it overlaps by half,
else of the background. The folder of images has COCO 2017's train2017 and val2017 (for v0.5: the images themselves).

--weights is a file of a state_dict; without it the detector has torchvision's weights of COCO, which it downloads. Its width is
1,024: --config.model.features=(1024,) --config.model.stages=1 --config.loss.stages=(1.0,). Needs torchvision:
pip install 'cfmlc_jax[parity]'.
"""

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from cfmlc_jax import cli, files
from cfmlc_jax.data.regions import lvis
from cfmlc_jax.data.regions.assign import assign
from cfmlc_jax.data.regions.records import DTYPES, Writer
from cfmlc_jax.errors import InputError

MODELS = ("fasterrcnn_resnet50_fpn", "fasterrcnn_resnet50_fpn_v2", "fasterrcnn_mobilenet_v3_large_fpn")
# Least overlap of a region with its object.
OVERLAP = 0.5
TRAIN, VAL = SPLITS = ("train", "val")


@cli.command
def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    parser = cli.Parser(description=__doc__)
    parser.add_argument("--images", type=files.local_path, required=True)
    parser.add_argument("--annotations", type=files.local_path, required=True)
    parser.add_argument(
        "--release",
        choices=(*lvis.CATEGORIES, lvis.OWN),
        default=lvis.OWN,
        help="of LVIS, whose categories are checked",
    )
    parser.add_argument("--out", type=files.local_path, required=True, help="a new folder of records")
    parser.add_argument("--split", choices=SPLITS, required=True)
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--weights", type=files.local_path, default=None, help="a file of a state_dict")
    parser.add_argument(
        "--maps", action="store_true", help="store pooled maps, not features of shared layers"
    )
    parser.add_argument("--dtype", choices=DTYPES, default=DTYPES[0])
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    flags = parser.parse_args(arguments)
    annotations = lvis.read(flags.annotations, flags.release, training=flags.split == TRAIN)
    detector = create(flags.model, flags.weights, flags.device)
    write(detector, annotations, flags)
    return 0


def create(name: str, weights: Path | None, device: str) -> Any:
    """The detector in evaluation mode.

    Raises:
        InputError: torchvision is missing, or the file cannot be read or is of another detector.
    """
    try:
        import torch
        from torchvision.models import detection
    except ImportError as error:
        raise InputError("torchvision is missing; pip install 'cfmlc_jax[parity]'") from error
    build = getattr(detection, name)
    if weights is None:
        return build(weights="DEFAULT").eval().to(device)
    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises errors of many kinds for files that it cannot read
        raise InputError(f"--weights {weights} cannot be read ({_one_line(error)})") from error
    try:
        classes = len(state["roi_heads.box_predictor.cls_score.bias"])
        detector = build(weights=None, weights_backbone=None, num_classes=classes)
        detector.load_state_dict(state)
    except (KeyError, TypeError, RuntimeError) as error:
        raise InputError(
            f"--weights {weights} are not of {name} ({_one_line(error)}); give another --model or file"
        ) from error
    return detector.eval().to(device)


def write(detector: Any, annotations: lvis.Annotations, flags: argparse.Namespace) -> None:
    """Write the records of all annotated images.

    Raises:
        InputError: an image cannot be read, or the folder has records.
        WriteError: a file cannot be written.
    """
    truth, training = annotations.truth, flags.split == TRAIN
    background = len(annotations.categories)
    writer = None
    for place, (number, file) in enumerate(zip(annotations.image_ids.tolist(), annotations.files)):
        own = truth.images == place
        corners, classes = truth.corners[own], truth.classes[own]
        added = corners if training else corners[:0]
        features, proposals, boxes = regions(detector, _image(flags.images, file, number), added, flags.maps)
        if writer is None:
            writer = Writer(
                flags.out,
                shape=features.shape[1:],
                categories=annotations.categories,
                labelled=training,
                dtype=flags.dtype,
                detector=flags.model,
            )
        labels = None
        if training:
            labels = assign(proposals, corners, classes, overlap=OVERLAP, background=background)[:, None]
        writer.add(number, features[:, None], boxes, labels)
        if place % 100 == 99:
            print(f"{place + 1:,} of {len(annotations.image_ids):,} images", file=sys.stderr, flush=True)
    if writer is None:
        raise InputError(f"{annotations.path} has no image; give annotations with images")
    writer.close()


def regions(
    detector: Any, image: np.ndarray, added: np.ndarray, maps: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features [r, 1024] or [r, 7, 7, 256], proposed boxes [r, 4] and moved boxes [r, 4] of an image.

    Args:
        detector: from `create`.
        image: uint8 [h, w, 3].
        added: boxes [m, 4] that are regions besides the proposed ones, in pixels of the image.
        maps: whether features are pooled maps.
    """
    import torch

    with torch.no_grad():
        device = next(detector.parameters()).device
        pixels = torch.from_numpy(image.copy()).permute(2, 0, 1).to(device, torch.float32) / 255
        images, _ = detector.transform([pixels])
        height, width = images.image_sizes[0]
        scale = torch.tensor([width / image.shape[1], height / image.shape[0]], device=device).repeat(2)
        maps_of_image = detector.backbone(images.tensors)
        proposed, _ = detector.rpn(images, maps_of_image)
        given = torch.as_tensor(added, dtype=torch.float32, device=device) * scale
        proposals = torch.cat([proposed[0], given])
        heads = detector.roi_heads
        pooled = heads.box_roi_pool(maps_of_image, [proposals], images.image_sizes)
        shared = heads.box_head(pooled)
        logits, deltas = heads.box_predictor(shared)
        moved = heads.box_coder.decode(deltas, [proposals])
        best = logits[:, 1:].argmax(dim=1) + 1  # class 0 is torchvision's background
        boxes = moved[torch.arange(len(best), device=device), best]
        limits = torch.tensor([width, height], device=device).repeat(2)
        boxes = torch.minimum(boxes.clamp(min=0), limits)
        features = pooled.permute(0, 2, 3, 1) if maps else shared
        return tuple(each.cpu().numpy() for each in (features, proposals / scale, boxes / scale))


def _image(folder, file, number) -> np.ndarray:
    if not file:
        raise InputError(
            f"image {number} has neither file_name nor coco_url; add one of them to the annotations"
        )
    path = folder / file
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(
            f"--images: {path} cannot be read ({_one_line(error)}); see the description"
        ) from error


def _one_line(error):
    return " ".join(str(error).split())[:200]


if __name__ == "__main__":
    sys.exit(main())
