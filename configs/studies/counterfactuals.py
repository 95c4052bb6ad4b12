"""What counterfactual scenes buy at bias 0.9: rows of docs/evidence.md with and without them, at the same cost.

    python -m scripts.ablation --study=configs/studies/counterfactuals.py
    python -m scripts.ablation --study=configs/studies/counterfactuals.py --quick          (whole images alone, one seed)

The generator is trained and the composites are drawn first. "removals" are composites without generated objects.
Half of each batch are composites. An epoch is of the real images and so has twice as many steps: half as many epochs
are as many steps and images as without composites.
"""

from typing import Any

BUDGET = 8  # epochs of the baseline, as in configs/studies/evidence.py
GENERATOR = "runs/cgn_scenes"
SCENES = f"{GENERATOR}/counterfactuals"
REMOVALS = "runs/cgn_removals"
# File that is written last -> the command that writes it.
STEPS = {
    f"{SCENES}/index.json": ("cfmlc_jax.main", "--config=configs/cgn_scenes.py", f"--workdir={GENERATOR}"),
    f"{REMOVALS}/index.json": (
        "cfmlc_jax.cgn",
        "generate",
        f"--checkpoint={GENERATOR}",
        "--records=6000",
        "--removals-alone",
        f"--out={REMOVALS}",
    ),
}
# Name -> text, folder of the composites, and how many of the steps write it.
COMPOSITES = {
    "": ("", "", 0),
    "_scenes": (", half counterfactual scenes", SCENES, 1),
    "_removals": (", half with removals alone", REMOVALS, 2),
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
        for suffix, (remark, folder, num_steps) in COMPOSITES.items():
            length = epochs // 2 if folder else epochs
            runs[name + suffix] = {
                "text": text + remark,
                "fields": fields
                | {"data.counterfactuals.path": folder, "train.epochs": length, "train.early_stop": False},
                "variants": {},
                "shown": shown,
                "group": "bias 0.9",
                "needs": tuple(STEPS)[:num_steps],
            }
    seeds = (0,) if quick else (0, 1, 2)
    return {"base": "configs/scenes.py", "seeds": seeds, "runs": runs, "steps": STEPS}
