"""CPU stand-ins for packages that a checkout of MLC-PAT imports; none changes the arithmetic."""

import importlib.machinery
import types
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

# Imported by the checkout, but not used by the comparison.
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
    """A module without a file; it has a spec, because packages look for each other by `find_spec`."""

    def __init__(self, name: str):
        super().__init__(name)
        self.__spec__ = importlib.machinery.ModuleSpec(name, None)


class Unused(StandIn):
    """A module whose public names are all empty classes, so that any name can be imported from it."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class InPlaceABN(nn.Module):
    """Batch norm with scale |weight| + eps, then leaky ReLU or nothing: [n, c, h, w] -> [n, c, h, w].

    It computes the same as the package inplace_abn and has the same entries in the state_dict, but it is not in
    place, and PyTorch differentiates it.
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

    Named as in torchvision. With three convolutions, the outer ones are 1×1 and the last has 4·planes
    features; with two, both are 3×3. The first 3×3 has the stride.
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
    """Modules by name: the parts of torchvision that the checkout uses."""
    names = (
        "torchvision",
        "torchvision.models",
        "torchvision.models._utils",
        "torchvision.datasets",
        "torchvision.datasets.coco",
        "torchvision.transforms",
    )
    modules: dict[str, Any] = {name: Unused(name) for name in names}
    modules["torchvision"].__version__ = "0.15.0"  # the checkout checks that it is above 0.7
    for name, (stage_sizes, convolutions) in RESNETS.items():
        create = _resnet_function(stage_sizes, convolutions)
        setattr(modules["torchvision.models"], name, create)
    modules["torchvision.models._utils"].IntermediateLayerGetter = IntermediateLayerGetter
    return modules


def _resnet_function(stage_sizes, convolutions):
    return lambda **options: ResNet(stage_sizes, convolutions, **options)


def in_place_stand_in() -> dict[str, types.ModuleType]:
    """Modules by name: the package inplace_abn, which needs a GPU."""
    module: Any = StandIn("inplace_abn")
    module.InPlaceABN = module.InPlaceABNSync = InPlaceABN
    return {"inplace_abn": module}
