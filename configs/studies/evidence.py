"""The study of docs/patches_at_cost.md: what counterfactual methods buy on digit scenes of known bias.

    python -m scripts.ablation --study=configs/studies/evidence.py            (2½ hours on two cores; resumable)
    python -m scripts.ablation --study=configs/studies/evidence.py --quick    (6 minutes)

Every run but one costs about as much training as `BUDGET` epochs of the baseline: a method whose step
costs five times as much gets a fifth of the epochs. What a run really cost is measured and stands
beside its result.
"""

BUDGET = 8  # epochs of the baseline
QUICK = 5
SCENES = 300

# Counterfactuals are predictions more, and cost time; those of patches are measured where they are shown.
WHOLE = {"effect.kinds": ("whole",)}
BASELINE = {"method": "whole"} | WHOLE
CELLS = {"patches.source": "map", "patches.map": "layer1"} | WHOLE
EXCLUSIVE = CELLS | {"patches.branches": "self", "patches.pooling": "exclusive"}
# Three patches along 64 pixels, edge to edge.
GRID_3 = {"patches.grids": (3,), "patches.overlap": 0.1}
TDE = {"effect.alphas": (0.25, 0.5, 1.0)}


def run(text, fields, cost, *, variants=None, shown=("whole", "patch", "combined"), effects=0):
    """A training: its name in tables, its fields, and its cost in steps of the baseline.

    variants: name -> fields of further evaluations of the same weights.
    shown: predictions that tables show.
    effects: scenes in which estimated effects are held against true ones.
    """
    return {
        "text": text,
        "fields": fields,
        "cost": cost,
        "variants": variants or {},
        "shown": shown,
        "effects": effects,
    }


PAT_I = {"method": "pat_i"}
INFERENCE = {
    "grid 3": GRID_3 | WHOLE,
    "grids 2 and 3": {"patches.grids": (2, 3)} | WHOLE,
    "overlap 0.5": {"patches.overlap": 0.5} | WHOLE,
    "null zeros": {"effect.null": "zeros"},
    "null blur": {"effect.null": "blur"},
}
MAIN = {
    "asl": run(
        "ASL baseline",
        BASELINE | TDE,
        1,
        variants={
            "PAT-I": PAT_I,
            "PAT-I, overlap 0.5": PAT_I | {"patches.overlap": 0.5},
            "PAT-I, grid 3": PAT_I | GRID_3,
        },
        shown=("whole",),
        effects=SCENES,
    ),
    "pat_cross": run("PAT-T cross", TDE, 5, variants=INFERENCE, effects=SCENES),
    "exclusive": run("cells, exclusive", EXCLUSIVE, 1, effects=SCENES),
}
FURTHER = {
    # As many epochs as the baseline, which cost five times as much.
    "pat_long": run(
        "PAT-T cross, five times the cost",
        TDE,
        1,
        variants={"overlap 0.25": {"patches.overlap": 0.25} | WHOLE},
    ),
    "pat_self": run("PAT-T self", {"patches.branches": "self"} | WHOLE, 5),
    "pat_grid3": run("PAT-T cross, grid 3", GRID_3 | WHOLE, 10),
    "pat_scales": run("PAT-T cross, grids 2 and 3", {"patches.grids": (2, 3)} | WHOLE, 14),
    "pat_overlap": run("PAT-T cross, overlap 0.5", {"patches.overlap": 0.5} | WHOLE, 5),
    "pat_native": run(
        "PAT-T cross, native resolution", {"patches.source": "device", "patches.size": 32} | WHOLE, 2
    ),
    "pat_null": run("PAT-T cross, half without a patch", {"train.mask_rate": 0.5} | TDE, 5, effects=SCENES),
    "asl_null": run(
        "ASL baseline, half without a patch",
        BASELINE | TDE | {"train.mask_rate": 0.5},
        1,
        variants={"PAT-I": PAT_I},
        shown=("whole",),
        effects=SCENES,
    ),
    "cells_pivot": run("cells, pivot", CELLS, 1),
    "asl_deconfound": run(
        "ASL, causal-norm head",
        BASELINE | TDE | {"model.head": "causal_norm", "effect.kinds": ("whole", "feature")},
        1,
        shown=("whole",),
        effects=SCENES,
    ),
    "asl_large": run("ASL baseline at 128 px", BASELINE | {"views.image_size": 128}, 4.3, shown=("whole",)),
    "asl_resnet18": run(
        "ASL baseline, ResNet-18", BASELINE | {"model.name": "resnet18"}, 13.7, shown=("whole",)
    ),
}


def get_study(quick: bool) -> dict:
    """The study: base configuration, seeds and runs by name."""
    budget = QUICK if quick else BUDGET
    runs = {}
    for bias in (0.9,) if quick else (0.9, 0.5, 0.0):
        for name, each in (MAIN if quick or bias < 0.9 else MAIN | FURTHER).items():
            epochs = max(1, round(budget / each["cost"]))
            fields = {"train.epochs": epochs, "train.early_stop": False, "data.scenes.bias": bias}
            variants = {} if quick or bias < 0.9 else each["variants"]
            effects = 0 if quick or bias < 0.9 else each["effects"]
            runs[f"{name}_bias{bias:g}"] = each | {
                "fields": each["fields"] | fields,
                "variants": variants,
                "effects": effects,
                "group": f"bias {bias:g}",
            }
    return {"base": "configs/scenes.py", "seeds": (0,) if quick else (0, 1, 2), "runs": runs}
