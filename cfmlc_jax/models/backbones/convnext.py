"""ConvNeXt with timm's arithmetic (Liu et al., CVPR 2022), and ConvNeXt V2 (Woo et al., CVPR 2023).

`MODELS` is the table of the published ones.
"""

import functools
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from cfmlc_jax.models.layers import remat
from cfmlc_jax.models.layers.convolution import Conv
from cfmlc_jax.models.layers.norms import LayerNorm
from cfmlc_jax.models.layers.pooling import average_pool
from cfmlc_jax.models.layers.residual import DropPath
from cfmlc_jax.models.layers.vision_transformer import LayerScale, Mlp, gelu
from cfmlc_jax.models.torch_names import TorchNames

_EPSILON = 1e-6
# Side of the depthwise kernels.
_KERNEL = 7
_LAYER_SCALE = 1e-6

_Conv = functools.partial(
    Conv, use_bias=True, kernel_init=nn.initializers.normal(0.02), bias_init=nn.initializers.zeros
)


class Block(nn.Module):
    """A depthwise convolution, a norm and two dense layers, added to their input: [b, h, w, d] -> [b, h, w, d].

    Attributes:
        response_norm: whether there is a norm of the responses between the dense layers, as in V2, instead of a
            learned scale of the branch.
    """

    response_norm: bool
    drop_path: float
    dtype: Any

    @nn.compact
    def __call__(self, x, *, train: bool):
        d = x.shape[-1]
        y = _Conv(d, _KERNEL, groups=d, dtype=self.dtype, name="conv_dw")(x)
        y = LayerNorm(_EPSILON, self.dtype, name="norm")(y)
        y = Mlp(gelu, self.dtype, self.response_norm, name="mlp")(y)
        if not self.response_norm:
            y = LayerScale(_LAYER_SCALE, name="scale")(y)
        return x + DropPath(self.drop_path)(y, train=train)


class ConvNeXt(nn.Module):
    """Features of images [b, h, w, 3]: maps of all stages, the last one normalised as "map" [b, h/32, w/32, d], and
    "pooled" [b, d], the last norm of the mean of the last map, at least float32.

    Attributes:
        widths, depths: features and blocks of each stage. The first stage's map has a quarter of the image's side,
            each later map half the side of the one before.
        response_norm: as in `Block`.
        drop_path: stochastic depth of the last block in training; it grows linearly from 0 at the first block.
        dtype: type of the computation; parameters are float32.
        norm: ignored; there are no batch norms.
        remat: one of `remat.MODES`.
    """

    widths: tuple[int, ...] = (96, 192, 384, 768)
    depths: tuple[int, ...] = (3, 3, 9, 3)
    response_norm: bool = False
    drop_path: float = 0.1
    dtype: Any = jnp.float32
    norm: Any = None
    remat: str = remat.NONE

    @nn.compact
    def __call__(self, x, *, train: bool):
        x = _Conv(self.widths[0], 4, 4, self.dtype, padding=0, name="stem_conv")(x)
        x = LayerNorm(_EPSILON, self.dtype, name="stem_norm")(x)
        features = {}
        for stage in range(len(self.depths)):
            x = remat.stage(self.remat, lambda self, x, stage=stage: self._stage(x, stage, train), self, x)
            features[f"stage{stage + 1}"] = x
        # The same norm for each pixel as for their mean, as DINOv3's ConvNeXt has it; timm has the latter.
        norm = LayerNorm(_EPSILON, jnp.promote_types(self.dtype, jnp.float32), name="norm")
        return features | {"map": norm(x).astype(self.dtype), "pooled": norm(average_pool(x))}

    def _stage(self, x, stage, train):
        if stage:
            x = LayerNorm(_EPSILON, self.dtype, name=f"stages{stage}_downsample_norm")(x)
            name = f"stages{stage}_downsample_conv"
            x = _Conv(self.widths[stage], 2, 2, self.dtype, padding=0, name=name)(x)
        before = sum(self.depths[:stage])
        rates = np.linspace(0, self.drop_path, sum(self.depths))[before : before + self.depths[stage]]
        for i, rate in enumerate(rates):
            block = Block(self.response_norm, float(rate), self.dtype, name=f"stages{stage}_blocks{i}")
            x = remat.block(self.remat, lambda block, x: block(x, train=train), block, x)
        return x


# Names are timm's.
MODELS: dict[str, Callable[..., ConvNeXt]] = {
    "convnext_tiny": ConvNeXt,
    "convnext_small": functools.partial(ConvNeXt, depths=(3, 3, 27, 3)),
    "convnext_base": functools.partial(ConvNeXt, widths=(128, 256, 512, 1024), depths=(3, 3, 27, 3)),
    "convnext_large": functools.partial(ConvNeXt, widths=(192, 384, 768, 1536), depths=(3, 3, 27, 3)),
    "convnextv2_tiny": functools.partial(ConvNeXt, response_norm=True),
    "convnextv2_base": functools.partial(
        ConvNeXt, widths=(128, 256, 512, 1024), depths=(3, 3, 27, 3), response_norm=True
    ),
}

TORCH = TorchNames(
    modules=(
        (r"stem_conv", "stem.0"),
        (r"stem_norm", "stem.1"),
        (r"stages(\d+)_downsample_norm", r"stages.\1.downsample.0"),
        (r"stages(\d+)_downsample_conv", r"stages.\1.downsample.1"),
        (r"stages(\d+)_blocks(\d+)\.scale\.gamma", r"stages.\1.blocks.\2.gamma"),
        (r"stages(\d+)_blocks(\d+)", r"stages.\1.blocks.\2"),
        (r"norm", "head.norm"),
    ),
    stem="stem.0.weight",
    head="head.fc",
    query2label="backbone.0",
    # Of the base model there are weights from pre-training on images and texts.
    embeddings=((640, "clip"),),
)
