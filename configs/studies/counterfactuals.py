"""What counterfactual scenes buy at bias 0.9: rows of docs/evidence.md with and without them, at the same cost.

    python -m cfmlc_jax.main --config=configs/cgn_scenes.py --workdir=runs/cgn_scenes
    python -m scripts.ablation --study=configs/studies/counterfactuals.py
    python -m scripts.ablation --study=configs/studies/counterfactuals.py --quick          (the baseline alone, one seed)

Half of each batch are composites. An epoch is of the real images and so has twice as many steps: half as many epochs are
as many steps and images as without composites.
"""

from typing import Any

BUDGET = 8  # epochs of the baseline, as in configs/studies/evidence.py
SCENES = "runs/cgn_scenes/counterfactuals"
WITH_SCENES: dict[str, Any] = {"data.counterfactuals.path": SCENES, "data.counterfactuals.share": 0.5}
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
        for suffix, more, length in (("", {}, epochs), ("_scenes", WITH_SCENES, epochs // 2)):
            runs[name + suffix] = {
                "text": f"{text}, half counterfactual scenes" if more else text,
                "fields": fields | more | {"train.epochs": length, "train.early_stop": False},
                "variants": {},
                "shown": shown,
                "group": "bias 0.9",
            }
    return {"base": "configs/scenes.py", "seeds": (0,) if quick else (0, 1, 2), "runs": runs}
