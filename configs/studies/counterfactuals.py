"""What counterfactual scenes buy at bias 0.9: rows of docs/evidence.md with and without them, at the same cost.

    python -m cfmlc_jax.main --config=configs/cgn_scenes.py --workdir=runs/cgn_scenes
    python -m cfmlc_jax.cgn generate --checkpoint=runs/cgn_scenes --records=6000 --removals-alone --out=runs/cgn_removals
    python -m scripts.ablation --study=configs/studies/counterfactuals.py
    python -m scripts.ablation --study=configs/studies/counterfactuals.py --quick          (whole images alone, one seed)

"removals" are composites without generated objects. Half of each batch are composites. An epoch is of the real images and so has twice as many steps: half as many epochs are
as many steps and images as without composites.
"""

from typing import Any

BUDGET = 8  # epochs of the baseline, as in configs/studies/evidence.py
# Name -> text, and folder of the composites.
COMPOSITES = {
    "": ("", ""),
    "_scenes": (", half counterfactual scenes", "runs/cgn_scenes/counterfactuals"),
    "_removals": (", half with removals alone", "runs/cgn_removals"),
}
BASELINE = {"method": "whole", "effect.kinds": ("whole",)}
EXCLUSIVE = {
    "patches.source": "map",
    "patches.map": "layer1",
    "patches.branches": "self",
    "patches.pooling": "exclusive",
    "effect.kinds": ("whole",),
}
# Name -> text, fields, epochs without composites, predictions that tables show.
METHODS: dict[str, tuple[str, dict[str, Any], int, tuple[str, ...]]] = {
    "asl": ("ASL baseline", BASELINE, BUDGET, ("whole",)),
    "exclusive": ("cells, exclusive", EXCLUSIVE, BUDGET, ("patch", "combined")),
    "pat_cross": ("PAT-T cross", {"effect.kinds": ("whole",)}, BUDGET // 4, ("combined",)),
}


def get_study(quick: bool) -> dict:
    """The study: base configuration, seeds and runs by name."""
    runs = {}
    for name in ("asl",) if quick else METHODS:
        text, fields, epochs, shown = METHODS[name]
        for suffix, (remark, folder) in COMPOSITES.items():
            length = epochs // 2 if folder else epochs
            runs[name + suffix] = {
                "text": text + remark,
                "fields": fields
                | {"data.counterfactuals.path": folder, "train.epochs": length, "train.early_stop": False},
                "variants": {},
                "shown": shown,
                "group": "bias 0.9",
            }
    return {"base": "configs/scenes.py", "seeds": (0,) if quick else (0, 1, 2), "runs": runs}
