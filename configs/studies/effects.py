"""The study of estimated direct effects (docs/evidence.md): who owns the pixels whose removal is the effect.

    python -m scripts.ablation --study=configs/studies/effects.py --workdir=runs/effects     (resumable)

The first run trains exclusive cells on decorrelated images; its cells then say for every classifier which pixels a class
owns (`LENDER`), from seed 0 for all seeds.
"""

from configs.studies.evidence import BASELINE, BUDGET, EXCLUSIVE, SCENES, run

LENDER = "runs/effects/runs/decorrelated_seed0"

ALPHA = {"effect.alphas": (1.0,)}
OWNER = {"effect.kinds": ("whole", "owner")} | ALPHA
LENT = {"decorrelated cells own": OWNER | {"effect.owners": LENDER}}
DECORRELATED = {
    "data.decorrelate.effective_share": 0.2,
    "views.squeeze.shift": 0.0625,
    "views.squeeze.gain": 0.25,
}
RUNS = {
    "decorrelated": run("cells, decorrelated", EXCLUSIVE | DECORRELATED | OWNER, 1, effects=SCENES),
    "exclusive": run("cells, exclusive", EXCLUSIVE | OWNER, 1, variants=LENT, effects=SCENES),
    "asl": run("ASL baseline", BASELINE | ALPHA, 1, variants=LENT, shown=("whole",), effects=SCENES),
    "asl_decorrelated": run(
        "ASL, decorrelated",
        BASELINE | DECORRELATED | ALPHA,
        1,
        variants=LENT,
        shown=("whole",),
        effects=SCENES,
    ),
    "pat_cross": run(
        "PAT-T cross, five epochs",
        ALPHA | {"effect.kinds": ("whole", "pivot", "owner")},
        BUDGET / 5,
        variants=LENT,
        effects=SCENES,
    ),
}


def get_study(quick: bool) -> dict:
    """The study: base configuration, seeds and runs by name."""
    runs = {}
    for name, each in RUNS.items():
        epochs = max(1, round(BUDGET / each["cost"]))
        fields = {"train.epochs": epochs, "train.early_stop": False}
        runs[name] = each | {"fields": each["fields"] | fields, "group": "bias 0.9"}
    return {"base": "configs/scenes.py", "seeds": (0,) if quick else (0, 1, 2), "runs": runs}
