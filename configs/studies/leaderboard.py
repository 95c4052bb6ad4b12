"""The leaderboard of docs/evidence.md: methods over the bias of training, on two data sets.

    python -m scripts.ablation --study=configs/studies/leaderboard.py             (resumable)
    python -m scripts.ablation --study=configs/studies/leaderboard.py --quick     (bias 0.9, digits, one seed)

Every method has the training cost of `BUDGET` epochs of the baseline, or up to 35 % more where a step has one more forward
pass; what a run really cost is measured and stands beside its result.

To add a method of your own, write a study of it, in a file of its own:

    from configs.studies.leaderboard import METHODS, Method, study

    def get_study(quick):
        return study({"asl": METHODS["asl"], "mine": Method("my method", {"patches.pooling": "mine"})}, quick)
"""

from typing import Any, NamedTuple

BUDGET = 8  # epochs of the baseline, as in configs/studies/evidence.py
BIASES = (0.9, 0.5, 0.0, 0.97)
OBJECTS = {"digits": "scenes", "photo objects": "photo_scenes"}


class Method(NamedTuple):
    """A method of the leaderboard.

    text: its name in tables.
    fields: of the configuration; all others are those of configs/scenes.py.
    epochs: such that its training costs what that of the baseline does.
    shown: predictions in tables.
    everywhere: at every bias and on both data sets, not at a bias of 0.9 on digits alone.
    """

    text: str
    fields: dict[str, Any]
    epochs: int = BUDGET
    shown: tuple[str, ...] = ("combined",)
    everywhere: bool = True


WHOLE = {"effect.kinds": ("whole",)}
EXCLUSIVE = WHOLE | {
    "patches.source": "map",
    "patches.map": "layer1",
    "patches.branches": "self",
    "patches.pooling": "exclusive",
}
VARIED = {"views.squeeze.shift": 1 / 16, "views.squeeze.gain": 0.25}
DECORRELATED = VARIED | {"data.decorrelate.effective_share": 0.25, "data.decorrelate.val_share": 0.1}
CELLS = EXCLUSIVE | DECORRELATED | {"patches.weight": 1.0}
REMOVED = CELLS | {"train.removal.rate": 0.8, "train.removal.from_epoch": 6}
EXCHANGED = REMOVED | {"train.removal.exchange": 0.8}
METHODS = {
    "asl": Method("ASL baseline", {"method": "whole"} | WHOLE),
    "pat": Method("PAT-T cross", WHOLE, epochs=2),
    "exclusive": Method("cells, exclusive", EXCLUSIVE, shown=("patch", "combined")),
    "exchanged": Method(
        "cells, decorrelated, exchanged, distilled",
        EXCHANGED | {"patches.distil": True},
        epochs=9,
        shown=("combined", "whole"),
    ),
    "asl_decorrelated": Method(
        "ASL, decorrelated", {"method": "whole"} | WHOLE | DECORRELATED, everywhere=False
    ),
    "pat_decorrelated": Method("PAT-T, decorrelated", WHOLE | DECORRELATED, epochs=2, everywhere=False),
    "decorrelated": Method("cells, decorrelated", CELLS, shown=("combined", "whole"), everywhere=False),
    "removed": Method(
        "cells, decorrelated, removed", REMOVED, epochs=9, shown=("combined", "whole"), everywhere=False
    ),
    "labelled": Method(
        "cells, decorrelated, exchanged", EXCHANGED, epochs=9, shown=("combined", "whole"), everywhere=False
    ),
}


def study(methods: dict[str, Method], quick: bool) -> dict:
    """A study of these methods: base configuration, seeds and runs by name."""
    runs = {}
    for objects, source in OBJECTS.items():
        for bias in BIASES:
            first = (objects, bias) == ("digits", BIASES[0])
            for name, method in methods.items():
                if not first and (quick or not method.everywhere):
                    continue
                of_data = {"data.source": source, "data.scenes.bias": bias}
                runs[f"{name}_{source}_bias{bias:g}"] = {
                    "text": method.text,
                    "fields": method.fields
                    | of_data
                    | {"train.epochs": method.epochs, "train.early_stop": False},
                    "variants": {},
                    "shown": method.shown,
                    "group": f"{objects}, bias {bias:g}",
                }
    return {"base": "configs/scenes.py", "seeds": (0,) if quick else (0, 1, 2), "runs": runs}


def get_study(quick: bool) -> dict:
    """The study: base configuration, seeds and runs by name."""
    return study(METHODS, quick)
