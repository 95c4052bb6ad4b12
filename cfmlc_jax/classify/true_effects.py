"""True effects of objects, by taking them out of their scenes, beside the effects that are estimated.

The effect of an object on its class is what the class's logit loses when the object, and nothing
else, is gone: `Scenes.render` without it. A total direct effect estimates that from the image as it
is. Estimates are of the same combined logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cfmlc_jax.data.sources import Record
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.results.predictions import Prediction
from cfmlc_jax.results.scores import Scores


class ScenesWithoutOne:
    """Source of all scenes without one of their objects each, m in all.

    Attributes:
        owner: int64 [m], the scene.
        digit: int64 [m], the class of the object that is gone.

    Args:
        scenes: what objects are taken out of.
    """

    def __init__(self, scenes: Scenes):
        self._scenes = scenes
        places = [
            (scene, position, item.digit)
            for scene in range(len(scenes))
            for position, item in enumerate(scenes.objects(scene))
        ]
        table = np.array(places, np.int64).reshape(-1, 3)
        self.owner, self._position, self.digit = table.T
        self.class_names = scenes.class_names
        self.labels = scenes.labels[self.owner].copy()
        self.labels[np.arange(len(table)), self.digit] = 0
        self.ids = [f"{scenes.ids[scene]}-without-{digit}" for scene, _, digit in places]

    def __len__(self) -> int:
        return len(self.owner)

    def __repr__(self) -> str:
        return f"ScenesWithoutOne({self._scenes!r})"

    def __getitem__(self, index: int) -> Record:
        scene, position = int(self.owner[index]), int(self._position[index])
        return Record(
            image=self._scenes.render(scene, without=position),
            labels=self.labels[index],
            id=self.ids[index],
            where=f"scene {scene} without object {position} of {self._scenes!r}",
        )


@dataclass(frozen=True)
class Effects:
    """Effects of m objects on their own class, logits.

    image: int64 [m], the object's scene.
    true: [m], combined logit with the object less without it.
    estimated: [m] by the prediction.
    """

    image: np.ndarray
    true: np.ndarray
    estimated: dict[Prediction, np.ndarray]


def effects(scenes: Scores, without: Scores, removals: ScenesWithoutOne, alphas: Sequence[float]) -> Effects:
    """True effects, and the estimates of every total direct effect.

    Args:
        scenes: of the scenes, with counterfactual logits.
        without: of `removals`.
        removals: of the same scenes.
        alphas: strengths of the estimates.
    """
    rows, columns = removals.owner, removals.digit
    combined = scenes.logits["combined"].astype(np.float64)
    gone = without.logits["combined"].astype(np.float64)
    estimates = scenes.predictions(alphas)
    return Effects(
        image=rows,
        true=combined[rows, columns] - gone[np.arange(len(rows)), columns],
        estimated={
            prediction: logits[rows, columns].astype(np.float64)
            for prediction, logits in estimates.items()
            if prediction.is_effect
        },
    )
