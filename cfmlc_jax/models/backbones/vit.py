"""Vision transformers with timm's arithmetic (Dosovitskiy et al., ICLR 2021): AugReg, CLIP, SigLIP, DINOv2, DINOv3.

One module; its options are what these families differ in: the tokens before those of the image, how positions enter,
norms, scales of branches, and which token is the image's feature. `MODELS` is the table of all of them.
"""

import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cfmlc_jax.errors import InputError
from cfmlc_jax.models.layers import remat
from cfmlc_jax.models.layers.norms import LayerNorm
from cfmlc_jax.models.layers.residual import DropPath
from cfmlc_jax.models.layers.vision_transformer import LayerScale, Mlp, PatchEmbed, ViTDense, gelu, quick_gelu
from cfmlc_jax.models.torch_names import Dialect, TorchNames

# What `ViT.pooled` can be.
CLASS_TOKEN, MEAN = "class token", "mean"
# What `ViT.positions` can be.
ALL, IMAGE, ROTARY = "all tokens", "tokens of the image", "rotary"
# Parts of the sequence of blocks after each of which there is a map, as after the stages of other backbones.
_STAGES = 4
# Longest wavelength of rotary positions, in shares of the shortest.
_TEMPERATURE = 100.0


class Attention(nn.Module):
    """Attention among all tokens: [b, n, d] -> [b, n, d].

    Attributes:
        heads: number of heads into which d is split.
        use_bias: whether queries, keys and values have biases.
        dtype: type of the computation; softmax and rotation are at least float32.
    """

    heads: int
    use_bias: bool
    dtype: Any

    @nn.compact
    def __call__(self, x, angles: tuple[np.ndarray, np.ndarray] | None = None):
        """Attend; queries and keys are rotated by angles, given as sine and cosine, two [n, d / heads], or None."""
        b, n, d = x.shape
        qkv = ViTDense(3 * d, use_bias=self.use_bias, dtype=self.dtype, name="qkv")(x)
        qkv = qkv.reshape(b, n, 3, self.heads, d // self.heads)
        q, k, v = (qkv[:, :, i] for i in range(3))
        if angles is not None:
            q, k = (rotate(tokens, *angles) for tokens in (q, k))
        wide = jnp.promote_types(x.dtype, jnp.float32)
        # n, m: queries and keys; a: heads.
        logits = jnp.einsum("bnad,bmad->banm", q * (d // self.heads) ** -0.5, k, preferred_element_type=wide)
        weights = jax.nn.softmax(logits, axis=-1).astype(self.dtype)
        y = jnp.einsum("banm,bmad->bnad", weights, v).reshape(b, n, d)
        return ViTDense(d, dtype=self.dtype, name="proj")(y)


def rotate(x, sine, cosine):
    """Each pair (i, i + e/2) of a head's features rotated by the angle of its token: [b, n, a, e], two [n, e] -> x's."""
    shape = (1, x.shape[1], 1, x.shape[3])
    first, second = jnp.split(x.astype(jnp.promote_types(x.dtype, jnp.float32)), 2, axis=-1)
    turned = jnp.concatenate([-second, first], axis=-1)
    straight = jnp.concatenate([first, second], axis=-1)
    return (straight * cosine.reshape(shape) + turned * sine.reshape(shape)).astype(x.dtype)


def rotary_angles(h: int, w: int, features: int, before: int) -> tuple[np.ndarray, np.ndarray]:
    """Sine and cosine of the angles of every token: two float32 [before + h·w, features].

    Rows and columns are numbers in [−1, 1] at any map size, from the centre of the first token's pixels to that of the
    last. A quarter of a head's features has the angles of its row, a quarter those of its column, and the second half
    the same angles again; the tokens before those of the image are not rotated (DINOv3, arXiv:2508.10104).
    """
    wavelengths = _TEMPERATURE ** (np.arange(features // 4) / (features // 4))
    centres = [2 * (np.arange(size) + 0.5) / size - 1 for size in (h, w)]
    grid = np.stack(np.meshgrid(*centres, indexing="ij"), axis=-1).reshape(h * w, 2, 1)
    angles = np.tile((2 * math.pi * grid / wavelengths).reshape(h * w, -1), 2)
    angles = np.concatenate([np.zeros((before, features)), angles])
    return np.sin(angles).astype(np.float32), np.cos(angles).astype(np.float32)


class Block(nn.Module):
    """Attention, then two dense layers, each normalised before and added to its input: [b, n, d] -> [b, n, d].

    Attributes:
        layer_scale: initial scale of the two branches; None: there are no scales.
        epsilon: of the norms.
    """

    heads: int
    use_bias: bool
    layer_scale: float | None
    activation: Any
    epsilon: float
    drop_path: float
    dtype: Any

    @nn.compact
    def __call__(self, x, angles: tuple[np.ndarray, np.ndarray] | None, *, train: bool):
        y = LayerNorm(self.epsilon, self.dtype, name="norm1")(x)
        y = Attention(self.heads, self.use_bias, self.dtype, name="attn")(y, angles)
        x = x + DropPath(self.drop_path)(self._scaled(y, "ls1"), train=train)
        y = LayerNorm(self.epsilon, self.dtype, name="norm2")(x)
        y = Mlp(self.activation, self.dtype, name="mlp")(y)
        return x + DropPath(self.drop_path)(self._scaled(y, "ls2"), train=train)

    def _scaled(self, y, name):
        return y if self.layer_scale is None else LayerScale(self.layer_scale, name=name)(y)


class ViT(nn.Module):
    """Features of images [b, h, w, 3]: "map" [b, h/patch, w/patch, d], the tokens of the image after the last norm;
    such maps after each quarter of the blocks, before a norm; and "pooled" [b, d], at least float32.

    Attributes:
        width: d.
        depth: number of blocks.
        heads: attention heads.
        patch: side of the squares of pixels that become tokens.
        grid: side of the map, in tokens, for which positions are learned; other maps get resampled ones.
        positions: ALL: a learned vector is added to each token; IMAGE: to those of the image only; ROTARY: the angle
            between a query and a key depends on where they are.
        class_token: whether there is a token for the whole image.
        registers: number of further learned tokens.
        pooled: CLASS_TOKEN: "pooled" is that token after the last norm; MEAN: the mean over the map.
        pre_norm: whether tokens are normalised before the first block; the embedding then has no bias.
        qkv_bias, layer_scale, activation, epsilon: as in `Block`.
        drop_path: stochastic depth of the last block in training; it grows linearly from 0 at the first block.
        dtype: type of the computation; parameters are float32.
        norm: ignored; there are no batch norms.
        remat: one of `remat.MODES`.

    Raises:
        InputError: squares of `patch` pixels do not tile the image.
    """

    width: int
    depth: int
    heads: int
    patch: int
    grid: int
    positions: str = ALL
    class_token: bool = True
    registers: int = 0
    pooled: str = CLASS_TOKEN
    pre_norm: bool = False
    qkv_bias: bool = True
    layer_scale: float | None = None
    activation: Any = gelu
    epsilon: float = 1e-6
    drop_path: float = 0.1
    dtype: Any = jnp.float32
    norm: Any = None
    remat: str = remat.NONE

    @property
    def depths(self) -> tuple[int, ...]:
        """Number of blocks, which PyTorch counts in one sequence."""
        return (self.depth,)

    @nn.compact
    def __call__(self, x, *, train: bool):
        for size in x.shape[1:3]:
            _check_size(size, self.patch)
        x = PatchEmbed(
            self.width,
            self.patch,
            self.patch,
            padding=0,
            dtype=self.dtype,
            use_bias=not self.pre_norm,
            norm=False,
            name="patch_embed",
        )(x)
        h, w = x.shape[1:3]
        x = self._with_positions(x)
        before = x.shape[1] - h * w
        angles = None
        if self.positions == ROTARY:
            angles = rotary_angles(h, w, self.width // self.heads, before)
        if self.pre_norm:
            x = LayerNorm(self.epsilon, self.dtype, name="norm_pre")(x)
        features = {}
        for stage, blocks in enumerate(np.array_split(np.arange(self.depth), _STAGES), 1):
            x = remat.stage(
                self.remat, lambda self, x, blocks=blocks: self._stage(x, blocks, angles, train), self, x
            )
            features[f"stage{stage}"] = _map(x, h, w)
        # Also of the class token, and in the precision of "pooled".
        wide = jnp.promote_types(self.dtype, jnp.float32)
        x = LayerNorm(self.epsilon, wide, name="norm")(x)
        pooled = x[:, 0] if self.pooled == CLASS_TOKEN else x[:, before:].mean(axis=1)
        return features | {"map": _map(x, h, w).astype(self.dtype), "pooled": pooled}

    def _with_positions(self, x):
        """The tokens of a map, with those before them and with learned positions: [b, h, w, d] -> [b, n, d]."""
        b, h, w, d = x.shape
        tokens = x.reshape(b, h * w, d)
        learned = [
            self.param(name, nn.initializers.normal(1e-6), (1, count, d))
            for name, count in (("cls_token", int(self.class_token)), ("reg_token", self.registers))
            if count
        ]
        before = jnp.concatenate([*learned, jnp.zeros((1, 0, d))], axis=1)
        if self.positions != ROTARY:
            placed = before.shape[1] if self.positions == ALL else 0
            table = self.param("pos_embed", nn.initializers.normal(0.02), (1, placed + self.grid**2, d))
            if placed:
                before += table[:, :placed]
            own = table[:, placed:].reshape(self.grid, self.grid, d)
            tokens += resampled(own, h, w).reshape(1, h * w, d).astype(self.dtype)
        before = jnp.broadcast_to(before.astype(self.dtype), (b, *before.shape[1:]))
        return jnp.concatenate([before, tokens], axis=1)

    def _stage(self, x, blocks, angles, train):
        rates = np.linspace(0, self.drop_path, self.depth)
        for i in blocks:
            block = Block(
                self.heads,
                self.qkv_bias,
                self.layer_scale,
                self.activation,
                self.epsilon,
                drop_path=float(rates[i]),
                dtype=self.dtype,
                name=f"blocks{i}",
            )
            x = remat.block(self.remat, lambda block, x: block(x, angles, train=train), block, x)
        return x


def _map(tokens, h, w):
    """The tokens of the image as a map: [b, n, d] -> [b, h, w, d]."""
    return tokens[:, -h * w :].reshape(tokens.shape[0], h, w, -1)


def resampled(table, h: int, w: int):
    """Positions for a map of another size: [grid, grid, d] -> [h, w, d].

    They are interpolated by cubic functions, and smoothed where there are fewer of them, as PyTorch's
    `interpolate(mode="bicubic", antialias=True)` does.
    """
    if table.shape[:2] == (h, w):
        return table
    rows, columns = (cubic_weights(old, new) for old, new in zip(table.shape, (h, w)))
    return jnp.einsum("hy,wx,yxd->hwd", rows, columns, table)


def cubic_weights(old: int, new: int) -> np.ndarray:
    """Weights of old samples in new ones on the same interval: float32 [new, old]; each row sums to 1.

    The kernel is Keys's with a = −1/2 (IEEE TASSP 1981), widened to the distance of the new samples if that is larger.
    """
    centres = (np.arange(new) + 0.5) * old / new - 0.5
    distance = np.abs(centres[:, None] - np.arange(old)) / max(old / new, 1)
    near = (1.5 * distance - 2.5) * distance**2 + 1
    far = ((-0.5 * distance + 2.5) * distance - 4) * distance + 2
    weights = np.where(distance < 1, near, np.where(distance < 2, far, 0))
    return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def _check_size(size, patch):
    if size < patch or size % patch:
        below = max(patch, size // patch * patch)
        raise InputError(
            f"image size {size} is not divisible by {patch}, the side of the squares that become tokens; "
            f"try {below} or {below + patch}"
        )


class Model(NamedTuple):
    """A published model: the module, but for its type, and its names in PyTorch."""

    create: functools.partial
    torch: TorchNames


def _torch(normalisation, modules=(), **options):
    return TorchNames(
        modules=(*modules, (r"blocks(\d+)", r"blocks.\1")),
        stem="patch_embed.proj.weight",
        head="head",
        query2label="backbone.0",
        normalisation=normalisation,
        **options,
    )


def _torchvision(first, second):
    """torchvision's names (checked with 0.29.1), given those of the two dense layers of a block."""
    return Dialect(
        "torchvision",
        f"encoder.layers.encoder_layer_0.mlp.{first}.weight",
        (
            (r"^cls_token", "class_token"),
            (r"^pos_embed", "encoder.pos_embedding"),
            (r"^patch_embed\.proj\.", "conv_proj."),
            (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
            (r"\.norm(\d)\.", r".ln_\1."),
            (r"\.attn\.qkv\.", ".self_attention.in_proj_"),
            (r"\.attn\.proj\.", ".self_attention.out_proj."),
            (r"\.mlp\.fc1\.", f".mlp.{first}."),
            (r"\.mlp\.fc2\.", f".mlp.{second}."),
            (r"^norm\.", "encoder.ln."),
            (r"^head\.", "heads.head."),
        ),
        normalisation="imagenet",
    )


# The published files have the older names of the dense layers.
_AUGREG = _torch("half", dialects=(_torchvision("0", "3"), _torchvision("linear_1", "linear_2")))
# The official files have a token for masked pre-training too, which classifiers do not use.
_DINOV2 = _torch("imagenet", unread=r"mask_token")
_DINOV3 = _torch("imagenet", modules=((r"blocks(\d+)\.ls(\d)\.gamma", r"blocks.\1.gamma_\2"),))
# Pooling by attention, which this project does not have; without a head it is not read.
_SIGLIP = _torch("half", unread=r"attn_pool\..*")

Small = functools.partial(ViT, width=384, depth=12, heads=6)
Base = functools.partial(ViT, width=768, depth=12, heads=12)
Large = functools.partial(ViT, width=1024, depth=24, heads=16)

_DINOV2_OPTIONS = {"patch": 14, "grid": 37, "layer_scale": 1e-5}
_REGISTERS = {"registers": 4, "positions": IMAGE}
_DINOV3_OPTIONS = {
    "patch": 16,
    "grid": 0,
    "registers": 4,
    "positions": ROTARY,
    "pooled": MEAN,
    "qkv_bias": False,
    "layer_scale": 1e-5,
    "epsilon": 1e-5,
}
_CLIP_OPTIONS = {"pre_norm": True, "epsilon": 1e-5}
_QUICK = {"activation": quick_gelu}
_SIGLIP_OPTIONS = {"patch": 16, "grid": 14, "class_token": False, "pooled": MEAN}


def _clip(base, patch, features, **options):
    """A model of CLIP, of which published ones also have a projection to the features that images and texts share."""
    names = _torch("clip", embeddings=((features, "clip"),))
    return Model(functools.partial(base, patch=patch, grid=224 // patch, **_CLIP_OPTIONS, **options), names)


# Names are timm's.
MODELS = {
    "vit_small_patch16_224": Model(functools.partial(Small, patch=16, grid=14), _AUGREG),
    "vit_base_patch16_224": Model(functools.partial(Base, patch=16, grid=14), _AUGREG),
    "vit_base_patch16_clip_224": _clip(Base, 16, 512),
    "vit_large_patch14_clip_224": _clip(Large, 14, 768),
    "vit_base_patch16_clip_quickgelu_224": _clip(Base, 16, 512, **_QUICK),
    "vit_large_patch14_clip_quickgelu_224": _clip(Large, 14, 768, **_QUICK),
    "vit_base_patch16_siglip_224": Model(functools.partial(Base, **_SIGLIP_OPTIONS), _SIGLIP),
    **{
        f"vit_{size}_patch14_{reg}dinov2": Model(
            functools.partial(base, **_DINOV2_OPTIONS, **(_REGISTERS if reg else {})), _DINOV2
        )
        for reg in ("", "reg4_")
        for size, base in (("small", Small), ("base", Base), ("large", Large))
    },
    **{
        f"vit_{size}_patch16_dinov3": Model(functools.partial(base, **_DINOV3_OPTIONS), _DINOV3)
        for size, base in (("small", Small), ("base", Base), ("large", Large))
    },
}
