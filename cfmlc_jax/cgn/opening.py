"""A generator opened from a checkpoint."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax.cgn import build, counterfactuals
from cfmlc_jax.cgn.build import Parts
from cfmlc_jax.errors import InputError


@dataclass(frozen=True)
class Opened:
    """The generator of a checkpoint.

    path: of the checkpoint.
    config: the checkpoint's.
    class_names: in label order.
    parts: built from `config`.
    """

    path: Path
    config: Any
    class_names: list[str]
    parts: Parts

    def drawing_weights(self) -> dict[str, Any]:
        """The weights that draw counterfactuals, {"params", "batch_stats"}: the averaged ones.

        Raises:
            InputError: the arrays cannot be read, or are of another model.
        """
        model = checkpoints.read_model(self.path, build.model_item(self.config, self.parts))
        return counterfactuals.drawing_weights(
            model["average"], self.parts.generator, self.config.optim.ema_decay
        )


def open(path: Path) -> Opened:
    """The generator of a checkpoint.

    Args:
        path: a checkpoint, or the workdir of a run for its best checkpoint.

    Raises:
        InputError: there is no such checkpoint, it cannot be read, or it is of a classifier.
    """
    path = checkpoints.find(path)
    meta = checkpoints.read_meta(path)
    if configs.system(meta["config"]) != configs.CGN:
        raise InputError(
            f"checkpoint {path} is of a classifier, which draws nothing; give a run of configs/cgn_digits.py"
        )
    config = configs.from_json(meta["config"])
    return Opened(path, config, meta["class_names"], build.create(config, len(meta["class_names"])))
