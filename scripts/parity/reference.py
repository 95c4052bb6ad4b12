"""The reference's side of the comparison: MLC-PAT's own model, loss and training, on CPU."""

import argparse
import functools
import importlib
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from cfmlc_jax.errors import InputError
from cfmlc_jax.torch_weights import mlc_pat
from scripts.parity import recipe
from scripts.parity.checkout import load_script, on_cpu, quietly, untrained
from scripts.parity.observed import Observed, Step, sample
from scripts.parity.stand_ins import InPlaceABN
from scripts.parity.subject import Subject

# Entries of a state_dict that are not weights: they follow from the image size, or are not read.
POSITIONS, COUNTER = ".pe", "num_batches_tracked"
DISPENSABLE = (POSITIONS, COUNTER)


class Reference:
    """The checkout's model, and its training.

    Args:
        checkout: folder of the checkout.
        name: the checkout's name of the model.
        num_classes: k.
        attention: "none", "self" or "cross".
        size: side of the views, pixels.
    """

    def __init__(self, checkout: Path, name: str, num_classes: int, *, attention: str, size: int):
        self._patches = load_script(checkout, "run_PAT-T.py")
        # PAT-T cannot train a model without attention logits; the baseline's script trains it.
        self._script = load_script(checkout, "run_asl.py") if attention == "none" else self._patches
        self._attention = attention
        self._args = argparse.Namespace(
            model_name=name,
            num_classes=num_classes,
            image_size=size,
            logits_attention=None if attention == "none" else attention,
            pretrain_type=None,
            pretrain_dir="",
            resume="",
            optim="adamw",
            lr=recipe.LEARNING_RATE,
            weight_decay=recipe.WEIGHT_DECAY,
            epochs=recipe.EPOCHS,
            steps_per_epoch=recipe.STEPS_PER_EPOCH,
            print_freq=recipe.STEPS_PER_EPOCH,
        )
        models = importlib.import_module(self._script.create_model.__module__).models
        with on_cpu(), untrained(models), quietly():
            self.model = self._script.create_model(self._args)
        for module in self.model.modules():
            _without_dropout(module)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all entries."""
        return {key: tensor.numpy().copy() for key, tensor in self.model.state_dict().items()}

    def load(self, state_dict: Mapping[str, np.ndarray], *, exact: bool) -> None:
        """Load these weights, to compute in float64 if `exact`, else in float32.

        Raises:
            InputError: positions of another image size, or missing entries.
        """
        own = self.model.state_dict()
        self._check_positions(own, state_dict)
        missing = [key for key in own if key not in state_dict and not key.endswith(DISPENSABLE)]
        if missing:
            raise InputError(
                f"the checkpoint lacks {len(missing)} entries of the checkout's model, such as {missing[0]}; "
                "give one with MLC-PAT's own names"
            )
        weights = {key: torch.from_numpy(state_dict[key]) for key in own if key in state_dict}
        self.model.load_state_dict(own | weights)
        dtype = torch.float64 if exact else torch.float32
        self.model.to(dtype)
        for module in self.model.modules():
            blur: Any = getattr(module, "op", None)
            if hasattr(blur, "filt"):  # created in half precision, which represents it exactly
                blur.filt = blur.filt.to(dtype)
        self._dtype = dtype

    def _check_positions(self, own, state_dict):
        for key, tensor in own.items():
            if key.endswith(POSITIONS) and key in state_dict and state_dict[key].shape != tensor.shape:
                side = state_dict[key].shape[-1] * (self._args.image_size // tensor.shape[-1])
                raise InputError(
                    f"--size={self._args.image_size} is not the image size of the checkpoint's positions ({key}); "
                    f"give --size={side}"
                )

    def evaluate(self, views: np.ndarray) -> dict[str, np.ndarray]:
        """Stages [b, v, h, w, c], "pooled" [b, v, c], logits [b, v, k] and "pooled patch logits" [b, k].

        Args:
            views: float32 [b, v, s, s, 3] in [0, 1].
        """
        self.model.eval()
        outputs: dict[str, Any] = {}
        handles = [
            module.register_forward_hook(
                # Copied, because a later layer may work in place.
                lambda _module, _inputs, output, stage=stage: outputs.update({stage: output.clone()})
            )
            for stage, module in self._stages().items()
        ]
        with torch.no_grad():
            logits = self.model(torch.cat(self._inputs(views)))
        for handle in handles:
            handle.remove()
        logits = logits if isinstance(logits, tuple) else (logits,)
        names = {1: ("whole",), 2: ("whole", "patch"), 3: ("whole", "attention", "score")}[len(logits)]
        outputs |= {f"{name} logits": x for name, x in zip(names, logits)}
        if "pooled" in outputs:
            outputs["pooled"] = outputs["pooled"].flatten(1)  # torchvision's is a map of one pixel
        images = len(views)
        evidence = (logits[1 if len(logits) > 1 else 0], logits[-1])
        pooled = self._patches.weighted_sum(images, *(x[images:] for x in evidence))
        stages = {stage: _by_image(x, images) for stage, x in outputs.items()}
        return stages | {"pooled patch logits": pooled.numpy()}

    def _stages(self):
        """Modules whose outputs are the stages."""
        modules = dict(self.model.named_modules())
        inside = next(name for name in modules if name.endswith("layer4")).removesuffix("layer4")
        stem = "maxpool" if f"{inside}maxpool" in modules else "conv1"
        stages = {"stem": modules[inside + stem]}
        stages |= {f"layer{i}": modules[f"{inside}layer{i}"] for i in range(1, 5)}
        for name in ("avgpool", "global_pool"):
            if name in modules:
                stages["pooled"] = modules[name]
        return stages

    def _inputs(self, views):
        """A batch [b, 3, s, s] of every view, in the format of the checkout's loader."""
        return list(torch.from_numpy(views.transpose(1, 0, 4, 2, 3).copy()).to(self._dtype))

    def start_training(self) -> None:
        """Create optimiser, schedule, loss and average as the checkout's script does."""
        script: Any = self._script
        self._optimizer = script.set_optimizer(self.model, self._args)
        self._schedule = script.lr_scheduler.OneCycleLR(
            self._optimizer,
            max_lr=recipe.LEARNING_RATE,
            steps_per_epoch=recipe.STEPS_PER_EPOCH,
            epochs=recipe.EPOCHS,
            pct_start=recipe.PCT_START,
        )
        self._loss = script.AsymmetricLoss(
            gamma_neg=4, gamma_pos=0, clip=0.05, disable_torch_grad_focal_loss=True
        )
        self._average = script.ModelEma(self.model, recipe.EMA_DECAY)
        self._start = self.state_dict()
        # For in-place norms, gradients and changes refer to |weight|, their scale.
        self._signs = {
            f"{name}.weight": np.sign(self._start[f"{name}.weight"])
            for name, module in self.model.named_modules()
            if isinstance(module, InPlaceABN)
        }

    def settings(self) -> np.ndarray:
        """Learning rate, beta1, beta2, epsilon and weight decay of the next step."""
        group = self._optimizer.param_groups[0]
        return np.array([group["lr"], *group["betas"], group["eps"], group["weight_decay"]])

    def step(self, views: np.ndarray, labels: np.ndarray) -> float:
        """Take one step with the script's own `train`, and return its loss.

        Args:
            views: as for `evaluate`.
            labels: [b, k].
        """
        inputs = self._inputs(views)
        # Labels are float64, as in the checkout.
        batch = (inputs[0] if self._attention == "none" else inputs, torch.from_numpy(labels).double())
        arguments = (self._optimizer, self._schedule, 0, self._args, logging.getLogger("mlc_pat"), self._loss)
        with on_cpu():
            return self._script.train([batch], self.model, self._average, *arguments)

    def gradient(self) -> dict[str, np.ndarray]:
        """Gradients of the last step by key; NaN for parameters that are not trained."""
        entries = {key: np.full(array.shape, np.nan) for key, array in self._start.items()}
        for key, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                entries[key] = parameter.grad.numpy() * self._signs.get(key, 1)
        return entries

    def change(self) -> dict[str, np.ndarray]:
        """Change of all entries since the start of training, by key."""
        return self._since_start(self.model.state_dict())

    def change_of_average(self) -> dict[str, np.ndarray]:
        """Change of the averaged entries since the start of training, by key."""
        return self._since_start(self._average.module.state_dict())

    def _since_start(self, state_dict):
        return {
            key: (state_dict[key].numpy() - array) * self._signs.get(key, 1)
            for key, array in self._start.items()
        }


def _without_dropout(module):
    if isinstance(module, nn.Dropout):
        module.p = 0.0
    if isinstance(module, nn.MultiheadAttention):
        module.dropout = 0.0


def _by_image(x, images):
    """[v·b, …] as [b, v, …], channels last."""
    array = x.numpy()
    array = array.reshape(-1, images, *array.shape[1:]).swapaxes(0, 1)
    return np.moveaxis(array, 2, -1) if array.ndim == 5 else array


def observe(reference, subject: Subject, views, batches, *, exact: bool) -> Observed:
    """The checkout's results by our paths, in float64 if `exact`.

    Args:
        reference: the checkout's model.
        subject: the weights.
        views: views for evaluation.
        batches: batches for training.
        exact: whether to compute in float64.
    """
    print(f"MLC-PAT in {'float64' if exact else 'float32'} …", file=sys.stderr, flush=True)
    reference.load(subject.state_dict, exact=exact)
    to_ours = functools.partial(mlc_pat.from_torch, subject.name, in_place_norms=False)
    stages = reference.evaluate(views)
    if batches:
        reference.start_training()
    steps = []
    for views, labels in batches:
        settings = reference.settings()
        loss = reference.step(views, labels)
        gradient = to_ours(reference.gradient())["params"]
        change, average = (sample(to_ours(x)) for x in (reference.change(), reference.change_of_average()))
        steps.append(Step(loss, settings, sample({"params": gradient}), change, average))
    return Observed(stages, steps)
