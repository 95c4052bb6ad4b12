"""True effects of objects, from scenes rendered without them, to compare with estimated direct effects.

The true effect of an object on its class is the change of the class's combined logit when the scene is
rendered without that object and otherwise unchanged (`Scenes.render`). A total direct effect estimates it from
the unchanged image alone.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cfmlc_jax.data.sources import Record
from cfmlc_jax.data.sources.scenes import Scenes
from cfmlc_jax.results.predictions import Prediction
from cfmlc_jax.results.scores import Scores


class ScenesWithoutOne:
    """A source of m images: each scene once for each of its objects, rendered without that object.

    Args:
        scenes: the complete scenes.

    Attributes:
        owner: int64 [m], the number of the scene.
        digit: int64 [m], the class of the missing object.
    """

    def __init__(self, scenes: Scenes):
        self._scenes = scenes
        places = [
            (scene, position, item.label)
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
    """The effects of m objects on the logit of their class.

    image: int64 [m], the number of the scene.
    true: [m], the combined logit with the object minus that without it.
    estimated: [m], by prediction.
    factual: [m], the combined logit with the object.
    absent: estimates for the classes without an object in an image, by prediction; their true effect is 0.
    """

    image: np.ndarray
    true: np.ndarray
    estimated: dict[Prediction, np.ndarray]
    factual: np.ndarray
    absent: dict[Prediction, np.ndarray]


def effects(scenes: Scores, without: Scores, removals: ScenesWithoutOne, alphas: Sequence[float]) -> Effects:
    """The true effects, and their estimates by each total direct effect.

    Args:
        scenes: scores of the complete scenes, with counterfactual logits.
        without: scores of `removals`.
        removals: the same scenes, each without one object.
        alphas: strengths of the total direct effects.
    """
    rows, columns = removals.owner, removals.digit
    combined = scenes.logits["combined"].astype(np.float64)
    combined_without = without.logits["combined"].astype(np.float64)
    estimates = {
        prediction: logits.astype(np.float64)
        for prediction, logits in scenes.predictions(alphas).items()
        if prediction.is_effect
    }
    absent = scenes.labels == 0
    factual = combined[rows, columns]
    return Effects(
        image=rows,
        true=factual - combined_without[np.arange(len(rows)), columns],
        estimated={prediction: logits[rows, columns] for prediction, logits in estimates.items()},
        factual=factual,
        absent={prediction: logits[absent] for prediction, logits in estimates.items()},
    )
