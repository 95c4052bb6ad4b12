"""The comparison's other side: a checkout of MLC-PAT, run on CPU as it is.

Only `scripts/compare_with_reference.py` uses it, and only where torch is installed. What the
checkout imports and the comparison can do without has stand-ins here: compiled or outdated
packages, downloads, the GPU, half precision. None changes the arithmetic.
"""

import argparse
import contextlib
import importlib
import importlib.machinery
import importlib.util
import io
import logging
import sys
import types
import warnings
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from cfmlc_jax.errors import InputError

LEARNING_RATE = 1e-4
WEIGHT_DECAY = 1e-4
# The start of the published cycle, where steps are small: at its peak, Adam makes whole steps of
# what is rounding in the gradient, and two float32 runs part company within three of them.
EPOCHS, STEPS_PER_EPOCH = 80, 100
PCT_START = 0.2
# The published 0.9997 moves an average by less than float32 resolves in a few steps.
EMA_DECAY = 0.9
# Entries of a state_dict that are no weights: they follow from the image size, or nothing reads them.
POSITIONS, COUNTER = ".pe", "num_batches_tracked"
DISPENSABLE = (POSITIONS, COUNTER)

# --- Stand-ins for packages ---------------------------------------------------------------------

# Imported by the checkout, for what the comparison does not run.
UNUSED = (
    "addict",
    "einops",
    "einops.layers",
    "einops.layers.torch",
    "pycocotools",
    "pycocotools.coco",
    "randaugment",
    "sklearn",
    "sklearn.metrics",
    "termcolor",
    "timm",
    "timm.models",
    "timm.models.layers",
    "torch.utils.tensorboard",
    "yapf",
    "yapf.yapflib",
    "yapf.yapflib.yapf_api",
)


class StandIn(types.ModuleType):
    """A module without a file. It has a spec: `find_spec`, by which packages look for each other, asks for it."""

    def __init__(self, name: str):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)


class Unused(StandIn):
    """A module in which every public name is an empty class, so that it can be imported from."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class InPlaceABN(nn.Module):
    """Batch norm with scale |weight| + eps, then leaky ReLU or nothing: [n, c, h, w] -> [n, c, h, w].

    What the package inplace_abn computes, with its entries in the state_dict; not in place, and
    differentiable by PyTorch itself.
    """

    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, num_features: int, *, activation: str, activation_param: float, group: None = None):
        super().__init__()
        if activation not in ("leaky_relu", "identity"):
            raise ValueError(f"activation {activation!r} is not leaky_relu or identity")
        self.eps = 1e-5
        self.slope = activation_param if activation == "leaky_relu" else 1.0
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x):
        """The layer's output."""
        scale = self.weight.abs() + self.eps
        x = F.batch_norm(
            x, self.running_mean, self.running_var, scale, self.bias, self.training, 0.1, self.eps
        )
        return F.leaky_relu(x, self.slope)


class ResidualBlock(nn.Module):
    """Convolutions with norms and a shortcut: [n, c, h, w] -> [n, d, h/stride, w/stride].

    Named as in torchvision. Of three convolutions the outer ones are 1×1 and the last has 4·planes
    features; of two both are 3×3. The first 3×3 has the stride.
    """

    def __init__(self, inputs: int, planes: int, stride: int, convolutions: int, norm_layer: Any):
        super().__init__()
        self.convolutions = convolutions
        strided = convolutions - 1
        c = inputs
        for i in range(1, convolutions + 1):
            kernel = 1 if convolutions == 3 and i != 2 else 3
            outputs = 4 * planes if i == 3 else planes
            step = stride if i == strided else 1
            self.add_module(f"conv{i}", nn.Conv2d(c, outputs, kernel, step, kernel // 2, bias=False))
            self.add_module(f"bn{i}", norm_layer(outputs))
            c = outputs
        self.downsample = None
        if stride != 1 or inputs != c:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, c, 1, stride, bias=False), norm_layer(c))

    def forward(self, x):
        """The block's output."""
        y = x
        for i in range(1, self.convolutions + 1):
            y = self.get_submodule(f"bn{i}")(self.get_submodule(f"conv{i}")(y))
            if i < self.convolutions:
                y = F.relu(y)
        return F.relu(y + (x if self.downsample is None else self.downsample(x)))


class ResNet(nn.Module):
    """Logits [n, 1000] of images [n, 3, h, w]; layers named as torchvision's."""

    def __init__(
        self,
        stage_sizes: tuple[int, ...],
        convolutions: int,
        *,
        norm_layer: Any = nn.BatchNorm2d,
        replace_stride_with_dilation: Any = (),
    ):
        super().__init__()
        if any(replace_stride_with_dilation):
            raise ValueError("this stand-in of torchvision has no dilation")
        self.conv1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False)
        self.bn1 = norm_layer(64)
        self.relu = nn.ReLU()
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        c = 64
        for stage, size in enumerate(stage_sizes):
            planes = 64 * 2**stage
            blocks = []
            for i in range(size):
                stride = 2 if stage and i == 0 else 1
                blocks.append(ResidualBlock(c, planes, stride, convolutions, norm_layer))
                c = planes * (4 if convolutions == 3 else 1)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(c, 1000)

    def forward(self, x):
        """The logits."""
        for name, module in self.named_children():
            if name == "fc":
                x = x.flatten(1)
            x = module(x)
        return x


# Blocks of each stage, convolutions in a block.
RESNETS = {
    "resnet18": ((2, 2, 2, 2), 2),
    "resnet34": ((3, 4, 6, 3), 2),
    "resnet50": ((3, 4, 6, 3), 3),
    "resnet101": ((3, 4, 23, 3), 3),
}


class IntermediateLayerGetter(nn.ModuleDict):
    """Maps of some layers, {name: [n, c, h, w]}: the model up to the last of them.

    Args:
        model: run child by child, in order.
        return_layers: children -> names of their outputs.
    """

    def __init__(self, model: nn.Module, return_layers: Mapping[str, str]):
        children = dict(model.named_children())
        last = max(list(children).index(name) for name in return_layers)
        super().__init__({name: children[name] for name in list(children)[: last + 1]})
        self.return_layers = dict(return_layers)

    def forward(self, x):
        """The maps."""
        maps = {}
        for name, module in self.items():
            x = module(x)
            if name in self.return_layers:
                maps[self.return_layers[name]] = x
        return maps


def torchvision_stand_in() -> dict[str, types.ModuleType]:
    """Modules by name: as much of torchvision as the checkout runs."""
    names = (
        "torchvision",
        "torchvision.models",
        "torchvision.models._utils",
        "torchvision.datasets",
        "torchvision.datasets.coco",
        "torchvision.transforms",
    )
    modules: dict[str, Any] = {name: Unused(name) for name in names}
    modules["torchvision"].__version__ = "0.15.0"  # the checkout asks whether it is above 0.7
    for name, (stage_sizes, convolutions) in RESNETS.items():
        create = _resnet_function(stage_sizes, convolutions)
        setattr(modules["torchvision.models"], name, create)
    modules["torchvision.models._utils"].IntermediateLayerGetter = IntermediateLayerGetter
    return modules


def _resnet_function(stage_sizes, convolutions):
    return lambda **options: ResNet(stage_sizes, convolutions, **options)


def _in_place_stand_in():
    module: Any = StandIn("inplace_abn")
    module.InPlaceABN = module.InPlaceABNSync = InPlaceABN
    return {"inplace_abn": module}


# --- The checkout, imported and run -------------------------------------------------------------


def load_script(checkout: Path, file: str) -> types.ModuleType:
    """One of the checkout's training scripts as a module; nothing is written into the checkout.

    torchvision is the real one where it is installed; inplace_abn never, since it needs a GPU.

    Raises:
        InputError: it imports what is neither installed nor stood in for, or torchvision is broken.
    """
    modules: dict[str, types.ModuleType] = {name: Unused(name) for name in UNUSED}
    modules |= _in_place_stand_in()
    if not has_torchvision():
        modules |= torchvision_stand_in()
    name = "mlc_pat_" + Path(file).stem.replace("-", "_").lower()
    spec = importlib.util.spec_from_file_location(name, checkout / file)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    with _importing(checkout, modules), _on_cpu():
        try:
            spec.loader.exec_module(script)
        except ImportError as error:
            raise InputError(
                f"{checkout / file} cannot be imported ({error}); install what it lacks, or check out "
                "the commit that this script was written for (its first lines)"
            ) from error
    # float32 throughout: mixed precision would hide what is compared.
    namespace: Any = script
    namespace.autocast = contextlib.nullcontext
    namespace.GradScaler = PlainScaler
    return script


def has_torchvision() -> bool:
    """Whether the real torchvision is there. It is imported before any stand-in: it takes what it finds.

    Raises:
        InputError: it is installed and cannot be imported.
    """
    if importlib.util.find_spec("torchvision") is None:
        return False
    try:
        importlib.import_module("torchvision")
    except (ImportError, OSError, RuntimeError) as error:  # a build for another PyTorch
        reason = " ".join(str(error).split())
        raise InputError(
            f"torchvision cannot be imported ({reason}); install the release that goes with PyTorch "
            f"{torch.__version__}, or remove it: a stand-in takes its place"
        ) from error
    return True


class PlainScaler:
    """A gradient scaler that scales nothing."""

    def scale(self, loss):
        """The loss itself."""
        return loss

    def step(self, optimizer) -> None:
        """One step of the optimiser."""
        optimizer.step()

    def update(self) -> None:
        """Nothing."""


@contextlib.contextmanager
def _importing(checkout, modules) -> Iterator[None]:
    """Imports find the checkout and the stand-ins, and leave no bytecode behind."""
    replaced = {name: sys.modules.get(name) for name in modules}
    parents = []
    for name, module in modules.items():
        parent, _, child = name.rpartition(".")
        if parent in modules:
            setattr(modules[parent], child, module)
        elif parent:  # of a package that is really there
            parents.append(mock.patch.object(importlib.import_module(parent), child, module, create=True))
    sys.modules.update(modules)
    try:
        with contextlib.ExitStack() as stack:
            for patch in parents:
                stack.enter_context(patch)
            stack.enter_context(mock.patch.object(sys, "path", [str(checkout), *sys.path]))
            stack.enter_context(mock.patch.object(sys, "dont_write_bytecode", True))
            stack.enter_context(_quietly())
            yield
    finally:
        for name, module in replaced.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """What the checkout prints and warns of while it is imported and built is not the comparison's."""
    with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _as_it_is(x, *_args, **_options):
    return x


@contextlib.contextmanager
def _on_cpu() -> Iterator[None]:
    """`.cuda()` stays on the CPU; scripted classes are run as Python."""
    with (
        mock.patch.object(torch.Tensor, "cuda", _as_it_is),
        mock.patch.object(nn.Module, "cuda", _as_it_is),
        mock.patch.object(torch.jit, "script", _as_it_is),
    ):
        yield


@contextlib.contextmanager
def _untrained(models) -> Iterator[None]:
    """torchvision's ResNets are built without their weights, whatever is asked for."""

    def without_weights(create):
        return lambda *, pretrained, **options: create(**options)

    with contextlib.ExitStack() as stack:
        for name in RESNETS:
            untrained = without_weights(getattr(models, name))
            stack.enter_context(mock.patch.object(models, name, untrained))
        yield


class Reference:
    """The checkout's model, and its training.

    Args:
        checkout: its folder.
        name: of the model, in the checkout's words.
        num_classes: k.
        attention: "none", "self" or "cross".
        size: side of the views, pixels.
    """

    def __init__(self, checkout: Path, name: str, num_classes: int, *, attention: str, size: int):
        self._patches = load_script(checkout, "run_PAT-T.py")
        # PAT-T trains no model without attention logits; that one is trained by the baseline.
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
            lr=LEARNING_RATE,
            weight_decay=WEIGHT_DECAY,
            epochs=EPOCHS,
            steps_per_epoch=STEPS_PER_EPOCH,
            print_freq=STEPS_PER_EPOCH,
        )
        models = importlib.import_module(self._script.create_model.__module__).models
        with _on_cpu(), _untrained(models), _quietly():
            self.model = self._script.create_model(self._args)
        for module in self.model.modules():
            _without_dropout(module)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies of all entries."""
        return {key: tensor.numpy().copy() for key, tensor in self.model.state_dict().items()}

    def load(self, state_dict: Mapping[str, np.ndarray], *, exact: bool) -> None:
        """Take these weights, and compute in float64 if `exact`, else in float32.

        Raises:
            InputError: positions of another image size, or entries that the checkout does not know.
        """
        own = self.model.state_dict()
        self._check_positions(own, state_dict)
        strange = [key for key in own if key not in state_dict and not key.endswith(DISPENSABLE)]
        if strange:
            raise InputError(
                f"the checkpoint lacks {len(strange)} entries of the checkout's model, such as {strange[0]}; "
                "give one with MLC-PAT's own names"
            )
        weights = {key: torch.from_numpy(state_dict[key]) for key in own if key in state_dict}
        self.model.load_state_dict(own | weights)
        dtype = torch.float64 if exact else torch.float32
        self.model.to(dtype)
        for module in self.model.modules():
            blur: Any = getattr(module, "op", None)
            if hasattr(blur, "filt"):  # made in half precision, which is exact, and converted in use
                blur.filt = blur.filt.to(dtype)
        self._dtype = dtype

    def _check_positions(self, own, state_dict):
        for key, tensor in own.items():
            if key.endswith(POSITIONS) and key in state_dict and state_dict[key].shape != tensor.shape:
                side = state_dict[key].shape[-1] * (self._args.image_size // tensor.shape[-1])
                raise InputError(
                    f"--size={self._args.image_size} is not that of the checkpoint's positions ({key}); "
                    f"give --size={side}"
                )

    def evaluate(self, views: np.ndarray) -> dict[str, np.ndarray]:
        """Stages [b, v, h, w, c], "pooled" [b, v, c], logits [b, v, k] and "pooled patch logits" [b, k].

        Args:
            views: float32 [b, v, s, s, 3] in [0, 1].
        """
        self.model.eval()
        seen: dict[str, Any] = {}
        handles = [
            module.register_forward_hook(
                # A copy: a later layer may work in place.
                lambda _module, _inputs, output, stage=stage: seen.update({stage: output.clone()})
            )
            for stage, module in self._stages().items()
        ]
        with torch.no_grad():
            logits = self.model(torch.cat(self._inputs(views)))
        for handle in handles:
            handle.remove()
        logits = logits if isinstance(logits, tuple) else (logits,)
        names = {1: ("whole",), 2: ("whole", "patch"), 3: ("whole", "attention", "score")}[len(logits)]
        seen |= {f"{name} logits": x for name, x in zip(names, logits)}
        if "pooled" in seen:
            seen["pooled"] = seen["pooled"].flatten(1)  # torchvision's is a map of one pixel
        images = len(views)
        evidence = (logits[1 if len(logits) > 1 else 0], logits[-1])
        pooled = self._patches.weighted_sum(images, *(x[images:] for x in evidence))
        stages = {stage: _by_image(x, images) for stage, x in seen.items()}
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
        """A batch [b, 3, s, s] of every view, as the checkout's loader gives them."""
        return list(torch.from_numpy(views.transpose(1, 0, 4, 2, 3).copy()).to(self._dtype))

    def start_training(self) -> None:
        """Optimiser, schedule, loss and average as the checkout's script makes them."""
        script: Any = self._script
        self._optimizer = script.set_optimizer(self.model, self._args)
        self._schedule = script.lr_scheduler.OneCycleLR(
            self._optimizer,
            max_lr=LEARNING_RATE,
            steps_per_epoch=STEPS_PER_EPOCH,
            epochs=EPOCHS,
            pct_start=PCT_START,
        )
        self._loss = script.AsymmetricLoss(
            gamma_neg=4, gamma_pos=0, clip=0.05, disable_torch_grad_focal_loss=True
        )
        self._average = script.ModelEma(self.model, EMA_DECAY)
        self._start = self.state_dict()
        # Gradients and changes are told of |weight|, in-place norms' scale.
        self._signs = {
            f"{name}.weight": np.sign(self._start[f"{name}.weight"])
            for name, module in self.model.named_modules()
            if isinstance(module, InPlaceABN)
        }

    def settings(self) -> np.ndarray:
        """Learning rate, beta1, beta2, epsilon and weight decay of the step to come."""
        group = self._optimizer.param_groups[0]
        return np.array([group["lr"], *group["betas"], group["eps"], group["weight_decay"]])

    def step(self, views: np.ndarray, labels: np.ndarray) -> float:
        """One update by the script's own `train`; its loss.

        Args:
            views: as of `evaluate`.
            labels: [b, k].
        """
        inputs = self._inputs(views)
        # Labels are float64, as the checkout reads them.
        batch = (inputs[0] if self._attention == "none" else inputs, torch.from_numpy(labels).double())
        arguments = (self._optimizer, self._schedule, 0, self._args, logging.getLogger("mlc_pat"), self._loss)
        with _on_cpu():
            return self._script.train([batch], self.model, self._average, *arguments)

    def gradient(self) -> dict[str, np.ndarray]:
        """The last step's, by key; NaN for what is not trained."""
        entries = {key: np.full(array.shape, np.nan) for key, array in self._start.items()}
        for key, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                entries[key] = parameter.grad.numpy() * self._signs.get(key, 1)
        return entries

    def change(self) -> dict[str, np.ndarray]:
        """Of all entries since the start of training, by key."""
        return self._since_start(self.model.state_dict())

    def change_of_average(self) -> dict[str, np.ndarray]:
        """Of the averaged entries since the start of training, by key."""
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


# --- Weights ------------------------------------------------------------------------------------


def fill(model: nn.Module, *, seed: int) -> dict[str, np.ndarray]:
    """Random weights for every entry of a model, by key, float32, under which logits depend on the image.

    Normal numbers x from a generator seeded by `seed` and the key: norms scale by 1 + 0.1·|x| (half
    of the in-place norms' weights are negative, which must not matter) and running variances are
    the same; biases and running means are 0.1·x, queries 0.5·x, all else x / √inputs. Convolutions
    have √3 times that, and the last norm of every residual branch a fifth: maps neither fade nor
    grow along a hundred layers.
    """
    entries = {key: tensor for key, tensor in model.state_dict().items() if tensor.dtype == torch.float32}
    weights = {
        key: _random_entry(key, tuple(tensor.shape), np.random.default_rng([seed, zlib.crc32(key.encode())]))
        for key, tensor in entries.items()
        if not key.endswith(DISPENSABLE)
    }
    for name, module in model.named_modules():
        if isinstance(module, InPlaceABN):
            weights[f"{name}.weight"][1::2] *= -1
        if hasattr(module, "downsample"):
            weights[f"{name}.{_last_norm(module)}.weight"] *= np.float32(0.2)
    return weights


def _random_entry(key, shape, generator):
    x = generator.standard_normal(shape, np.float32)
    leaf = key.rpartition(".")[2]
    if leaf == "running_var" or (leaf == "weight" and len(shape) == 1):
        return 1 + np.float32(0.1) * np.abs(x)
    if leaf in ("running_mean", "b") or leaf.endswith("bias"):
        return np.float32(0.1) * x
    if "query_embed" in key:
        return np.float32(0.5) * x
    inputs = shape[2] if leaf == "W" else int(np.prod(shape[1:]))
    return x * np.float32(((3 if len(shape) == 4 else 1) / inputs) ** 0.5)


def _last_norm(block):
    last = "3" if hasattr(block, "conv3") else "2"
    return f"bn{last}" if hasattr(block, "bn1") else f"conv{last}.1"
