"""Classes of images by an exported file, with ONNX Runtime, NumPy and Pillow alone.

python scripts/serve_onnx.py coco.onnx a.jpg b.png
"""

import argparse
import json

import numpy as np
import onnxruntime
from PIL import Image, ImageOps


def main() -> None:
    """Print the classes of each image, with their probabilities."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", metavar="FILE.onnx")
    parser.add_argument("images", nargs="+", metavar="IMAGE")
    flags = parser.parse_args()
    session = onnxruntime.InferenceSession(flags.model)
    about = {name: json.loads(text) for name, text in session.get_modelmeta().custom_metadata_map.items()}
    for path in flags.images:
        pixels = prepared(Image.open(path), about["preprocessing"])
        (scores,) = session.run([about["prediction"]], {"images": pixels[None]})[0]
        thresholds = about["thresholds"]  # None: each image has one class
        present = [scores.argmax()] if thresholds is None else np.flatnonzero(scores > thresholds)
        print(path, *(f"{about['class_names'][k]} {scores[k]:.3f}" for k in present), sep="\t")


def prepared(image: Image.Image, how: dict) -> np.ndarray:
    """The input of an image, uint8 [size, size, 3], as the file's document says."""
    image, size = ImageOps.exif_transpose(image).convert("RGB"), how["size"]
    if how["shorter_side"]:
        scaled = [side * how["shorter_side"] // min(image.size) for side in image.size]
        left, top = (round((side - size) / 2) for side in scaled)
        image = image.resize(scaled, Image.Resampling.BILINEAR).crop((left, top, left + size, top + size))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))


if __name__ == "__main__":
    main()
