"""The layers of `scripts.benchmark.layers` in PyTorch, as TResNet's, ConvNeXt's and Query2Label's own code has them."""

import torch
from torch import nn
from torch.nn import functional

from scripts.benchmark import inputs


class Blur(nn.Module):
    """Every second pixel of the map blurred by (1, 2, 1) ⊗ (1, 2, 1) / 16: [n, c, h, w] -> [n, c, h/2, w/2]."""

    def __init__(self, channels: int):
        super().__init__()
        row = torch.tensor([1.0, 2.0, 1.0])
        self.register_buffer("kernel", (row[:, None] * row / 16).expand(channels, 1, 3, 3).contiguous())

    def forward(self, x):
        """The blurred map."""
        padded = functional.pad(x, (1, 1, 1, 1), mode="reflect")
        return functional.conv2d(padded, self.kernel, stride=2, groups=x.shape[1])


class SqueezeExcite(nn.Module):
    """The map times gates computed from its mean: [n, c, h, w] -> [n, c, h, w]."""

    def __init__(self, channels: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Conv2d(channels, channels // 4, 1), nn.Conv2d(channels // 4, channels, 1)

    def forward(self, x):
        """The gated map."""
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(x.mean((2, 3), keepdim=True)))))


class DecoderLayer(nn.Module):
    """Attention of queries [n, q, d] to a map [n, t, d], and a feed-forward network, without self-attention."""

    def __init__(self, d: int, heads: int, hidden: int):
        super().__init__()
        self.attention = nn.MultiheadAttention(d, heads, batch_first=True)
        self.first, self.second = nn.Linear(d, hidden), nn.Linear(hidden, d)
        self.norm1, self.norm2 = nn.LayerNorm(d), nn.LayerNorm(d)

    def forward(self, target, memory, queries, position):
        """The decoded targets."""
        attended, _ = self.attention(target + queries, memory + position, memory)
        target = self.norm1(target + attended)
        return self.norm2(target + self.second(torch.relu(self.first(target))))


class Query2Label(nn.Module):
    """Logits of k classes from a map: [n, d, h, w] -> [n, k]."""

    def __init__(self, channels: int, num_classes: int = inputs.CLASSES, heads: int = 4, hidden: int = 8192):
        super().__init__()
        self.encoder = nn.TransformerEncoderLayer(channels, heads, hidden, 0.0, batch_first=True)
        self.decoders = nn.ModuleList(DecoderLayer(channels, heads, hidden) for _ in range(2))
        self.queries = nn.Parameter(torch.randn(num_classes, channels))
        self.kernel = nn.Parameter(torch.randn(num_classes, channels) / channels**0.5)
        self.bias = nn.Parameter(torch.zeros(num_classes))
        self.norm = nn.LayerNorm(channels)

    def forward(self, x):
        """The logits."""
        tokens = x.flatten(2).transpose(1, 2)
        position = torch.zeros_like(tokens[:1])
        memory = self.encoder(tokens + position)
        queries = self.queries.expand(len(x), -1, -1)
        target = torch.zeros_like(queries)
        for decoder in self.decoders:
            target = decoder(target, memory, queries, position)
        return (self.norm(target) * self.kernel).sum(-1) + self.bias


def _layer(name, channels):
    if name == "depthwise":
        return nn.Conv2d(channels, channels, 7, padding=3, groups=channels, bias=False)
    return {"blur": Blur, "squeeze_excite": SqueezeExcite, "query2label": Query2Label}[name](channels)


def step(name: str, device: str):
    """A function without arguments: gradients of a layer's sum of squares by its weights and its map.

    Args:
        name: a key of `inputs.LAYERS`.
        device: PyTorch's name of a device.
    """
    x = torch.from_numpy(inputs.layer_map(name)).permute(0, 3, 1, 2).contiguous().to(device)
    x.requires_grad_()
    layer = _layer(name, x.shape[1]).to(device)

    def gradients():
        return torch.autograd.grad(layer(x).square().sum(), [x, *layer.parameters()])

    return gradients
