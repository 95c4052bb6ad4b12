"""What decorrelated training and edited images buy: rows of docs/evidence.md, at four biases.

    python -m scripts.ablation --study=configs/studies/decorrelated.py            (resumable)
    python -m scripts.ablation --study=configs/studies/decorrelated.py --quick    (bias 0.9, one seed)

Epochs are those of configs/studies/evidence.py. A step with edits has one more forward pass.
"""

from typing import Any

BUDGET = 8  # epochs of the baseline, as in configs/studies/evidence.py
VARIED = {"views.squeeze.shift": 1 / 16, "views.squeeze.gain": 0.25}
EXCLUSIVE = VARIED | {
    "patches.source": "map",
    "patches.map": "layer1",
    "patches.branches": "self",
    "patches.pooling": "exclusive",
    "effect.kinds": ("whole",),
}
DECORRELATED = EXCLUSIVE | {"data.decorrelate.effective_share": 0.34}
REMOVED = DECORRELATED | {"train.removal.rate": 0.5}
# Name -> text, fields.
RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "varied": ("cells, exclusive, varied", EXCLUSIVE),
    "decorrelated": ("… decorrelated", DECORRELATED),
    "removed": ("… and classes removed", REMOVED),
    "exchanged": ("… and classes exchanged", REMOVED | {"train.removal.exchange": 0.7}),
}


def get_study(quick: bool) -> dict:
    """The study: base configuration, seeds and runs by name."""
    runs = {
        f"{name}_bias{bias:g}": {
            "text": text,
            "fields": fields | {"data.scenes.bias": bias, "train.epochs": BUDGET, "train.early_stop": False},
            "variants": {},
            "shown": ("whole", "patch", "combined"),
            "group": f"bias {bias:g}",
        }
        for bias in ((0.9,) if quick else (0.9, 0.5, 0.0, 0.97))
        for name, (text, fields) in RUNS.items()
    }
    return {"base": "configs/scenes.py", "seeds": (0,) if quick else (0, 1, 2), "runs": runs}
