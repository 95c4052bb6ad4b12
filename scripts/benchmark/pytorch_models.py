"""The PyTorch side of the benchmark: models as in torchvision, or timm's; training, prediction and input as in MLC-PAT.

Only `scripts.benchmark.pytorch` imports this module, because it needs torch.
"""

import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageEnhance, ImageOps
from torch import nn

ASL_EPSILON = 1e-8
EMA_DECAY = 0.9997


class BasicBlock(nn.Module):
    """Two 3×3 convolutions with a shortcut: [n, c, h, w] -> [n, planes, h/stride, w/stride]."""

    expansion = 1

    def __init__(self, inputs: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, planes, stride)

    def forward(self, x):
        """The output of the block."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        y += self.downsample(x)
        return self.relu(y)


class Bottleneck(nn.Module):
    """1×1, 3×3 (strided) and 1×1 convolutions with a shortcut: [n, c, h, w] -> [n, 4·planes, h/stride, w/stride]."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, 4 * planes, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4 * planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(inputs, 4 * planes, stride)

    def forward(self, x):
        """The output of the block."""
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        y += self.downsample(x)
        return self.relu(y)


def _shortcut(inputs, outputs, stride):
    if stride == 1 and inputs == outputs:
        return nn.Identity()
    return nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))


# Blocks per stage, kind of block, width, and whether the stem is for small images.
ARCHITECTURES: dict[str, tuple[tuple[int, ...], type[BasicBlock] | type[Bottleneck], int, bool]] = {
    "resnet18": ((2, 2, 2, 2), BasicBlock, 64, False),
    "resnet34": ((3, 4, 6, 3), BasicBlock, 64, False),
    "resnet50": ((3, 4, 6, 3), Bottleneck, 64, False),
    "resnet101": ((3, 4, 23, 3), Bottleneck, 64, False),
    "resnet_small": ((1, 1), BasicBlock, 64, True),
}


# Names in timm of backbones that are not written here; other names are the same there.
TIMM = {"tresnet_l_v2": "tresnet_v2_l", "swin_b_224": "swin_base_patch4_window7_224"}


class Classifier(nn.Module):
    """Logits of three linear heads: views [n, 3, h, w] -> whole, attention and score, each [n, k]."""

    def __init__(self, name: str, num_classes: int):
        super().__init__()
        self.backbone, channels = _residual(name) if name in ARCHITECTURES else _of_timm(name)
        self.heads = nn.ModuleList(nn.Linear(channels, num_classes) for _ in range(3))

    def forward(self, x):
        """The logits of the three heads."""
        features = self.backbone(x)
        return [head(features) for head in self.heads]


def _residual(name):
    """A ResNet without its last layer, and the number of its features."""
    stages, block, width, small_stem = ARCHITECTURES[name]
    channels = width // 2 if small_stem else width
    layers: list[nn.Module] = []
    if small_stem:
        layers += [nn.PixelUnshuffle(4), nn.Conv2d(48, channels, 3, 1, 1, bias=False)]
    else:
        layers += [nn.Conv2d(3, channels, 7, 2, 3, bias=False)]
    layers += [nn.BatchNorm2d(channels), nn.ReLU(inplace=True)]
    if not small_stem:
        layers += [nn.MaxPool2d(3, 2, 1)]
    for stage, blocks in enumerate(stages):
        planes = width * 2**stage
        for i in range(blocks):
            layers.append(block(channels, planes, 2 if not i and (stage or small_stem) else 1))
            channels = planes * block.expansion
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten()), channels


def _of_timm(name):
    """timm's model of this name without its last layer, with our stochastic depth, and the number of its features."""
    import timm

    sizes = {"dynamic_img_size": True} if name.startswith("vit_") else {}
    rate = 0.0 if name.startswith(("resn", "tresnet")) else 0.1
    model = timm.create_model(TIMM.get(name, name), num_classes=0, drop_path_rate=rate, **sizes)
    return model, model.num_features


def asymmetric_loss(logits, labels, *, gamma_neg: float = 4.0, clip: float = 0.05):
    """Asymmetric loss with gamma_pos 0, summed over two [n, k]; its focal weight has no gradient, as in MLC-PAT."""
    positive = torch.sigmoid(logits)
    negative = (1 - positive + clip).clamp(max=1)
    losses = labels * positive.clamp(min=ASL_EPSILON).log()
    losses = losses + (1 - labels) * negative.clamp(min=ASL_EPSILON).log()
    with torch.no_grad():
        weight = (1 - positive * labels - negative * (1 - labels)) ** (gamma_neg * (1 - labels))
    return -(losses * weight).sum()


class Training:
    """Training steps of PAT-T on one batch of views: asymmetric loss, AdamW, averaged weights and statistics."""

    def __init__(self, name: str, views: np.ndarray, labels: np.ndarray, *, device: str):
        self.model = Classifier(name, labels.shape[1]).train().to(device)
        self.average = [tensor.clone() for tensor in self.model.state_dict().values()]
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-4, weight_decay=1e-4)
        self.views, self.labels = (torch.from_numpy(array).to(device) for array in (views, labels))

    def run(self) -> None:
        """Do one step."""
        whole, attention, score = _by_view(self.model(_pixels(self.views)), len(self.labels))
        weights = attention[:, 1:].softmax(1)
        loss = asymmetric_loss(whole[:, 0], self.labels)
        loss = loss + asymmetric_loss((weights * score[:, 1:]).sum(1), self.labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        with torch.no_grad():
            for average, tensor in zip(self.average, self.model.state_dict().values()):
                average.copy_(EMA_DECAY * average + (1 - EMA_DECAY) * tensor)


class Forward:
    """Prediction for one batch of views by the combined logits."""

    def __init__(self, name: str, views: np.ndarray, num_classes: int, *, device: str):
        self.model = Classifier(name, num_classes).eval().to(device)
        self.views = torch.from_numpy(views).to(device)

    def run(self) -> None:
        """Do one forward pass."""
        with torch.inference_mode():
            whole, attention, score = _by_view(self.model(_pixels(self.views)), len(self.views))
            patch = (attention[:, 1:].softmax(1) * score[:, 1:]).sum(1)
            torch.sigmoid((whole[:, 0] + patch) / 2)


def _pixels(views):
    """uint8 [b, v, h, w, 3] as float [b·v, 3, h, w] in [0, 1]."""
    return views.flatten(0, 1).permute(0, 3, 1, 2).contiguous().float() / 255


def _by_view(logits, images):
    return [x.unflatten(0, (images, -1)) for x in logits]


class Views(torch.utils.data.Dataset):
    """Float views [v, 3, size, size] and labels [k] of photo files, augmented as in MLC-PAT."""

    def __init__(self, paths: list[Path], size: int, grid: int, labels: np.ndarray):
        self.paths, self.size, self.grid, self.labels = paths, size, grid, labels

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int):
        with Image.open(self.paths[index]) as file:
            image = file.convert("RGB")
        square = (self.size, self.size)
        base = image.resize(square)
        side = self.size // self.grid
        corners = [(i * side, j * side) for i in range(self.grid) for j in range(self.grid)]
        patches = [base.crop((x, y, x + side, y + side)) for x, y in corners]
        views = [part.resize(square, Image.Resampling.BILINEAR) for part in (image, *patches)]
        tensors = [_to_tensor(rand_augment(cutout(view))) for view in views]
        return torch.stack(tensors), torch.from_numpy(self.labels[index])


def _to_tensor(view):
    return torch.from_numpy(np.array(view)).permute(2, 0, 1).contiguous().float() / 255


def cutout(view: Image.Image) -> Image.Image:
    """The same view, in which a random box of half its side was filled with a random colour."""
    half = int(0.5 * view.width + 0.5) // 2
    x, y = random.randrange(view.width), random.randrange(view.height)
    colour = tuple(random.randrange(256) for _ in range(3))
    ImageDraw.Draw(view).rectangle((x - half, y - half, x + half, y + half), fill=colour)
    return view


def rand_augment(view: Image.Image) -> Image.Image:
    """The view after two of fifteen random operations, each at a random level and applied with probability 0.5."""
    for _ in range(2):
        operation = random.choice(OPERATIONS)
        level = random.randint(1, 9) / 9
        if random.random() < 0.5:
            view = operation(view, level)
    return view


def _sign(value):
    return value if random.random() < 0.5 else -value


def _affine(view, matrix, resample):
    return view.transform(view.size, Image.Transform.AFFINE, matrix, resample, fillcolor=(128, 128, 128))


def _erase(view, level):
    half = int(20 * level) // 2
    x, y = random.randrange(view.width), random.randrange(view.height)
    view = view.copy()
    ImageDraw.Draw(view).rectangle((x - half, y - half, x + half, y + half), fill=(125, 122, 113))
    return view


BICUBIC, NEAREST = Image.Resampling.BICUBIC, Image.Resampling.NEAREST
# (view, level in (0, 1]) -> view; the ranges are those of MLC-PAT's package randaugment.
OPERATIONS = [
    lambda view, level: ImageOps.invert(view),
    _erase,
    lambda view, level: ImageEnhance.Sharpness(view).enhance(1 + _sign(0.9 * level)),
    lambda view, level: ImageOps.autocontrast(view),
    lambda view, level: ImageOps.posterize(view, round(8 - 4 * level)),
    lambda view, level: _affine(view, (1, _sign(0.3 * level), 0, 0, 1, 0), BICUBIC),
    lambda view, level: _affine(view, (1, 0, _sign(0.45 * level * view.width), 0, 1, 0), NEAREST),
    lambda view, level: _affine(view, (1, 0, 0, 0, 1, _sign(0.45 * level * view.height)), NEAREST),
    lambda view, level: _affine(view, (1, 0, 0, _sign(0.3 * level), 1, 0), BICUBIC),
    lambda view, level: view.rotate(30 * level, fillcolor=(128, 128, 128)),
    lambda view, level: ImageOps.equalize(view),
    lambda view, level: ImageEnhance.Contrast(view).enhance(1 + _sign(0.9 * level)),
    lambda view, level: ImageEnhance.Color(view).enhance(1 + _sign(0.9 * level)),
    lambda view, level: ImageOps.solarize(view, 256 * (1 - level)),
    lambda view, level: ImageEnhance.Brightness(view).enhance(1 + _sign(0.9 * level)),
]


def batches(paths: list[Path], *, size: int, grid: int, labels: np.ndarray, batch_size: int, workers: int):
    """A DataLoader of shuffled batches of the photos, without the incomplete last batch."""
    return torch.utils.data.DataLoader(
        Views(paths, size, grid, labels),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
    )
