"""The study of estimated direct effects (docs/evidence.md): who owns the pixels whose removal is the effect.

    python -m scripts.ablation --study=configs/studies/effects.py --workdir=runs/effects     (resumable)

The first run trains the best method of the leaderboard; its cells then say for every classifier which pixels a class
owns (`LENDER`), from seed 0 for all seeds.
"""

from configs.studies.evidence import SCENES, run
from configs.studies.leaderboard import METHODS

LENDER = "runs/effects/runs/exchanged_seed0"

ALPHA = {"effect.alphas": (1.0,)}
OWNER = {"effect.kinds": ("whole", "owner")} | ALPHA
LENT = {"decorrelated cells own": OWNER | {"effect.owners": LENDER}}
PAT_EPOCHS = 5  # not at equal cost: a PAT-T of two epochs knows few objects


def _run(name, fields, **options):
    """A method of the leaderboard, with effects measured."""
    method = METHODS[name]
    trained = {"train.epochs": method.epochs, "train.early_stop": False}
    return run(
        method.text, method.fields | trained | fields, 1, shown=method.shown, effects=SCENES, **options
    )


RUNS = {
    "exchanged": _run("exchanged", OWNER),
    "exclusive": _run("exclusive", OWNER, variants=LENT),
    "asl": _run("asl", ALPHA, variants=LENT),
    "asl_decorrelated": _run("asl_decorrelated", ALPHA, variants=LENT),
    "pat": _run(
        "pat",
        ALPHA | {"effect.kinds": ("whole", "pivot", "owner"), "train.epochs": PAT_EPOCHS},
        variants=LENT,
    ),
}


def get_study(quick: bool) -> dict:
    """The study: base configuration, seeds and runs by name."""
    runs = {name: each | {"group": "bias 0.9"} for name, each in RUNS.items()}
    return {"base": "configs/scenes.py", "seeds": (0,) if quick else (0, 1, 2), "runs": runs}
