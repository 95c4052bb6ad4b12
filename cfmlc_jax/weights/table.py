"""The public weights that have a name here, each with its origin, digest, preprocessing, licence and score.

Facts are those of the publisher: of torchvision 0.29's and timm 1.0.31's registries and timm's results for ImageNet,
and of the pages of Swin, CvT, MIIL and MLC-PAT. A fact that these do not state is empty.
"""

import difflib
from collections.abc import Iterable
from typing import NamedTuple

from cfmlc_jax.errors import InputError
from cfmlc_jax.models.layers.normalise import CLIP, HALF, IMAGENET, Normalisation, text_of

LIST = "python -m cfmlc_jax.weights list"


class Preprocessing(NamedTuple):
    """What weights were evaluated with.

    normalisation: of the pixels; None: they are in [0, 1].
    size: side of the view, pixels.
    resize: side of the image before the central crop of `size`, pixels.
    interpolation: of the resizing.
    """

    normalisation: Normalisation | None
    size: int
    resize: int
    interpolation: str

    def __str__(self) -> str:
        pixels = text_of(self.normalisation) or "[0, 1]"
        return f"{pixels}, {self.size} of {self.resize} px, {self.interpolation}"


class Public(NamedTuple):
    """Public weights of a model.

    name: "publisher:weights".
    model: a backbone, or "q2l_" and a backbone, of `models.catalogue`.
    url: of the file; empty: there is none that a program can read.
    hub: repository on the Hugging Face Hub; empty: it is not there.
    page: where the weights are described, and where a person gets the file if there is neither `url` nor `hub`.
    sha256: hexadecimal, as many digits as are published; empty: none. On the Hub the server states it.
    megabytes: 10⁶ bytes, as published; 0: not published.
    preprocessing: what they were evaluated with.
    licence: as published.
    score: as published, and on what.
    """

    name: str
    model: str
    url: str
    hub: str
    page: str
    sha256: str
    megabytes: float
    preprocessing: Preprocessing
    licence: str
    score: str

    @property
    def file(self) -> str:
        """Path of the file inside the cache of weights; on the Hub the folder of the repository."""
        publisher, _, weights = self.name.partition(":")
        if self.hub:
            return f"hf/{self.hub}"
        return f"{publisher}/{self.url.rpartition('/')[2] or weights + '.pth.tar'}"


_TOP1 = "top-1 on ImageNet-1k"
_TUNED = f"{_TOP1} after fine-tuning"


def _torchvision(name, digest, mebibytes, resize, top1, interpolation="bilinear", model=""):
    """torchvision states mebibytes, and eight digits of the digest in the file's name."""
    architecture = name.partition(".")[0]
    return Public(
        name=f"torchvision:{name}",
        model=model or architecture,
        url=f"https://download.pytorch.org/models/{architecture}-{digest}.pth",
        hub="",
        page=f"https://docs.pytorch.org/vision/stable/models/generated/torchvision.models.{architecture}.html",
        sha256=digest,
        megabytes=round(mebibytes * 1.048576, 1),
        preprocessing=Preprocessing(IMAGENET, 224, resize, interpolation),
        licence="BSD-3-Clause",
        score=f"{top1} {_TOP1}",
    )


def _timm(name, model, preprocessing, licence, score):
    return Public(
        name=f"timm:{name}",
        model=model,
        url="",
        hub=f"timm/{name}",
        page=f"https://huggingface.co/timm/{name}",
        sha256="",
        megabytes=0,
        preprocessing=preprocessing,
        licence=licence,
        score=score,
    )


def _miil(path, model, preprocessing, page, licence, score):
    """MIIL's files; no digest and no size is published."""
    return Public(
        name=f"miil:{path.rpartition('/')[2].removesuffix('.pth')}",
        model=model,
        url=f"https://miil-public-eu.oss-eu-central-1.aliyuncs.com/model-zoo/{path}",
        hub="",
        page=page,
        sha256="",
        megabytes=0,
        preprocessing=preprocessing,
        licence=licence,
        score=score,
    )


_PLAIN = Preprocessing(None, 224, 256, "bilinear")
_PLAIN_448 = Preprocessing(None, 448, 512, "bilinear")
_SQUEEZED_448 = Preprocessing(None, 448, 448, "bilinear")
_SWIN_224 = Preprocessing(IMAGENET, 224, 248, "bicubic")
_SWIN_384 = Preprocessing(IMAGENET, 384, 384, "bicubic")
_DINOV2 = Preprocessing(IMAGENET, 518, 518, "bicubic")
_DINOV3 = Preprocessing(IMAGENET, 256, 256, "bicubic")
_CLIP = Preprocessing(CLIP, 224, 224, "bicubic")
_HALF = Preprocessing(HALF, 224, 248, "bicubic")
_CONVNEXT = Preprocessing(IMAGENET, 224, 256, "bicubic")
_SIZES = ("small", "base", "large")
_ENTRIES = (
    _torchvision("resnet18.IMAGENET1K_V1", "f37072fd", 44.661, 256, 69.758),
    _torchvision("resnet34.IMAGENET1K_V1", "b627a593", 83.275, 256, 73.314),
    _torchvision("resnet50.IMAGENET1K_V1", "0676ba61", 97.781, 256, 76.130),
    _torchvision("resnet50.IMAGENET1K_V2", "11ad3fa6", 97.790, 232, 80.858),
    _torchvision("resnet101.IMAGENET1K_V1", "63fe2227", 170.511, 256, 77.374),
    _torchvision("resnet101.IMAGENET1K_V2", "cd907fc2", 170.530, 232, 81.886),
    _torchvision("resnet152.IMAGENET1K_V1", "394f9c45", 230.434, 256, 78.312),
    _torchvision("resnet152.IMAGENET1K_V2", "f82ba261", 230.474, 232, 82.284),
    _torchvision("resnext50_32x4d.IMAGENET1K_V1", "7cdf4587", 95.789, 256, 77.618),
    _torchvision("resnext50_32x4d.IMAGENET1K_V2", "1a0047aa", 95.833, 232, 81.198),
    _torchvision("vit_b_16.IMAGENET1K_V1", "c867db91", 330.285, 256, 81.072, model="vit_base_patch16_224"),
    _torchvision("swin_b.IMAGENET1K_V1", "68c6b09e", 335.364, 238, 83.582, "bicubic", "swin_b_224"),
    _timm(
        "resnet101.a1h_in1k",
        "resnet101",
        Preprocessing(IMAGENET, 224, 235, "bicubic"),
        "Apache-2.0",
        f"81.950 {_TOP1}",
    ),
    _timm(
        "resnext101_32x4d.fb_swsl_ig1b_ft_in1k",
        "resnext101_32x4d",
        Preprocessing(IMAGENET, 224, 256, "bilinear"),
        "CC-BY-NC-4.0",
        f"83.268 {_TOP1}",
    ),
    _timm("tresnet_l.miil_in1k", "tresnet_l", _PLAIN, "Apache-2.0", f"81.498 {_TOP1}"),
    _timm(
        "tresnet_l.miil_in1k_448",
        "tresnet_l",
        _PLAIN_448,
        "Apache-2.0",
        f"82.278 {_TOP1}",
    ),
    _timm("tresnet_v2_l.miil_in21k", "tresnet_l_v2", _PLAIN, "Apache-2.0", f"83.910 {_TUNED}"),
    _timm("swin_base_patch4_window7_224.ms_in22k", "swin_b_224", _SWIN_224, "MIT", f"85.276 {_TUNED}"),
    _timm("swin_base_patch4_window12_384.ms_in22k", "swin_b_384", _SWIN_384, "MIT", f"86.442 {_TUNED}"),
    _timm("swin_large_patch4_window7_224.ms_in22k", "swin_l_224", _SWIN_224, "MIT", f"86.320 {_TUNED}"),
    _timm("swin_large_patch4_window12_384.ms_in22k", "swin_l_384", _SWIN_384, "MIT", f"87.142 {_TUNED}"),
    *(
        _timm(f"vit_{size}_patch14_dinov2.lvd142m", f"vit_{size}_patch14_dinov2", _DINOV2, "Apache-2.0", "")
        for size in _SIZES
    ),
    _timm("vit_base_patch14_reg4_dinov2.lvd142m", "vit_base_patch14_reg4_dinov2", _DINOV2, "Apache-2.0", ""),
    _timm("vit_small_patch16_dinov3.lvd1689m", "vit_small_patch16_dinov3", _DINOV3, "dinov3-license", ""),
    _timm("vit_base_patch16_dinov3.lvd1689m", "vit_base_patch16_dinov3", _DINOV3, "dinov3-license", ""),
    _timm("vit_base_patch16_clip_224.laion2b", "vit_base_patch16_clip_224", _CLIP, "Apache-2.0", ""),
    # timm's later name of the model is vit_base_patch16_clip_quickgelu_224, that of the repository is this.
    _timm(
        "vit_base_patch16_clip_224.openai",
        "vit_base_patch16_clip_quickgelu_224",
        Preprocessing(CLIP, 224, 248, "bicubic"),
        "Apache-2.0",
        "",
    ),
    _timm("vit_base_patch16_siglip_224.webli", "vit_base_patch16_siglip_224", _HALF, "Apache-2.0", ""),
    _timm("vit_small_patch16_224.augreg_in21k_ft_in1k", "vit_small_patch16_224", _HALF, "Apache-2.0", ""),
    _timm("vit_base_patch16_224.augreg_in21k_ft_in1k", "vit_base_patch16_224", _HALF, "Apache-2.0", ""),
    *(
        _timm(f"convnext_{size}.fb_in22k_ft_in1k", f"convnext_{size}", _CONVNEXT, "Apache-2.0", "")
        for size in ("tiny", "base", "large")
    ),
    _miil(
        "tresnet/tresnet_l_448.pth",
        "tresnet_l",
        _PLAIN_448,
        "https://github.com/Alibaba-MIIL/TResNet",
        "Apache-2.0",
        "",
    ),
    _miil(
        "ImageNet_21K_P/models/tresnet_l_v2_miil_21k.pth",
        "tresnet_l_v2",
        Preprocessing(None, 224, 224, "bilinear"),
        "https://github.com/Alibaba-MIIL/ImageNet21K",
        "Apache-2.0",
        "76.7 semantic top-1 on ImageNet-21K-P",
    ),
    _miil(
        "ML_Decoder/tresnet_l_pretrain_ml_decoder.pth",
        "tresnet_l_v2",
        _SQUEEZED_448,
        "https://github.com/Alibaba-MIIL/ML_Decoder",
        "MIT",
        "",
    ),
    Public(
        name="cvt:w24_384_in22k",
        model="cvt_w24",
        url="",
        hub="",
        page="https://github.com/microsoft/CvT (its model zoo, CvT-w24-384x384-IN-22k.pth)",
        sha256="",
        megabytes=0,
        preprocessing=Preprocessing(IMAGENET, 384, 384, "bicubic"),
        licence="",
        score=f"87.6 {_TUNED}",
    ),
    Public(
        name="mlc_pat:q2l_tresnet_l_v2",
        model="q2l_tresnet_l_v2",
        url="",
        hub="",
        page="https://drive.google.com/drive/folders/1LYhVADz1O8BOLNBkZsBJ37noEERjiBZL (model_best.pth.tar)",
        sha256="",
        megabytes=0,
        preprocessing=_SQUEEZED_448,
        licence="",
        score="91.7 mAP on COCO 2014",
    ),
)
TABLE = {entry.name: entry for entry in _ENTRIES}
PUBLISHERS = tuple(dict.fromkeys(name.partition(":")[0] for name in TABLE))


def public(name: str) -> Public:
    """The entry of a name.

    Raises:
        InputError: there is none; names the most similar one.
    """
    if name not in TABLE:
        hint = "; or give hf:timm/NAME for another model of timm" if name.startswith("timm:") else ""
        raise InputError(f"{name!r} is not among the known weights{nearest(name)}{hint}; {LIST} names all")
    return TABLE[name]


def nearest(name: str, names: Iterable[str] = TABLE) -> str:
    """A hint with the names that begin so, else with the most similar name; "" if none is similar."""
    ends = {known.partition(":")[2]: known for known in names} | {known: known for known in names}
    longer = sorted({ends[known] for known in ends if name and known.startswith(f"{name}.")})
    near = longer or [ends[match] for match in difflib.get_close_matches(name, ends, 1)]
    return f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
