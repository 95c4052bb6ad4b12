"""Backbones, heads and the classifier of views."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.backbones import resnet, vit
from cfmlc_jax.models.classifier import Classifier
from cfmlc_jax.models.heads import linear
from cfmlc_jax.models.layers.norms import BatchNorm

# torchvision's counts without the 1000-class layer (resnet18: 11,689,512 − 513,000, …); ours by hand.
BACKBONE_PARAMETERS = {
    "resnet10": 4_905_792,  # by hand
    "resnet18": 11_176_512,
    "resnet34": 21_284_672,
    "resnet50": 23_508_032,
    "resnet101": 42_500_160,
    "resnet152": 58_143_808,
    "resnext50_32x4d": 22_979_904,
    "resnext101_32x4d": 42_128_704,  # of timm's 44,177,704
    "resnext152_32x4d": 57_902_400,  # by the rule that gives the two above
    "resnet32_cifar": 537_488,  # by hand
    "resnet_small": 301_760,
    "tresnet_l": 53_556_256,  # of 55,989,256 with the 1000-class layer
    "tresnet_l_v2": 44_125_824,  # of 46,174,824
    # Microsoft's, of 87.8 and 196.5 million with the 1000-class layer (by windows of 7 and of 12).
    "swin_b_224": 86_743_224,
    "swin_b_384": 86_878_584,
    "swin_l_224": 194_995_476,
    "swin_l_384": 195_198_516,
    "cvt_w24": 276_171_392,  # of 277.2 million
    "cnn_mnist": 67_110,  # by hand
    # timm's of models without a head (of SigLIP that without pooling by attention).
    "vit_small_patch16_224": 21_665_664,
    "vit_base_patch16_224": 85_798_656,
    "vit_base_patch16_clip_224": 85_799_424,
    "vit_large_patch14_clip_224": 303_179_776,
    "vit_base_patch16_clip_quickgelu_224": 85_799_424,
    "vit_large_patch14_clip_quickgelu_224": 303_179_776,
    "vit_base_patch16_siglip_224": 85_797_120,
    "vit_small_patch14_dinov2": 22_056_192,
    "vit_base_patch14_dinov2": 86_579_712,
    "vit_large_patch14_dinov2": 304_367_616,
    "vit_small_patch14_reg4_dinov2": 22_057_344,
    "vit_base_patch14_reg4_dinov2": 86_582_016,
    "vit_large_patch14_reg4_dinov2": 304_370_688,
    "vit_small_patch16_dinov3": 21_586_944,
    "vit_base_patch16_dinov3": 85_641_216,
    "vit_large_patch16_dinov3": 303_079_424,
    "convnext_tiny": 27_820_128,
    "convnext_small": 49_454_688,
    "convnext_base": 87_566_464,
    "convnext_large": 196_230_336,
    "convnextv2_tiny": 27_866_496,
    "convnextv2_base": 87_692_800,
}
FEATURES = {
    "resnet10": 512,
    "resnet18": 512,
    "resnet34": 512,
    "resnet50": 2048,
    "resnet101": 2048,
    "resnet152": 2048,
    "resnext50_32x4d": 2048,
    "resnext101_32x4d": 2048,
    "resnext152_32x4d": 2048,
    "resnet32_cifar": 128,
    "resnet_small": 128,
    "tresnet_l": 2432,
    "tresnet_l_v2": 2048,
    "swin_b_224": 1024,
    "swin_b_384": 1024,
    "swin_l_224": 1536,
    "swin_l_384": 1536,
    "cvt_w24": 1024,
    "cnn_mnist": 64,
    **{name: {"s": 384, "b": 768, "l": 1024}[name.removeprefix("vit_")[0]] for name in vit.MODELS},
    **dict.fromkeys(("convnext_tiny", "convnext_small", "convnextv2_tiny"), 768),
    **dict.fromkeys(("convnext_base", "convnextv2_base"), 1024),
    "convnext_large": 1536,
}


def shapes(model, views):
    return jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), views)


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("name", catalogue.BACKBONES)
def test_parameter_counts(name):
    stride = catalogue.BACKBONES[name].stride
    size = stride * max(64 // stride, 1)
    model = catalogue.create_model(name, 10, attention="cross", image_size=size)
    params = shapes(model, jnp.zeros((1, 1, size, size, 3)))["params"]
    assert count(params["backbone"]) == BACKBONE_PARAMETERS[name]
    assert count(params["head"]) == 3 * (FEATURES[name] + 1) * 10


def tiny(attention="cross", dtype=jnp.float32):
    norm = functools.partial(BatchNorm, dtype=dtype)
    backbone = resnet.ResNet(
        stage_sizes=(1, 1), block=resnet.Bottleneck, width=8, small_stem=True, dtype=dtype, norm=norm
    )
    return Classifier(backbone=backbone, head=linear.LinearHead(3, attention))


def test_outputs_of_every_view(rng):
    views = jnp.asarray(rng.random((2, 5, 32, 32, 3)), jnp.float32)
    model = tiny()
    outputs = model.apply(model.init(jax.random.key(0), views, train=False), views, train=False)
    for logits in (outputs.whole, outputs.attention, outputs.score):
        assert (logits.shape, logits.dtype) == ((2, 5, 3), jnp.float32)
    assert {name: x.shape for name, x in outputs.features.items()} == {
        "stem": (2, 5, 8, 8, 4),
        "layer1": (2, 5, 4, 4, 32),
        "layer2": (2, 5, 2, 2, 64),
        "map": (2, 5, 2, 2, 64),
        "pooled": (2, 5, 64),
    }


def test_views_do_not_influence_each_other_in_evaluation(rng):
    views = jnp.asarray(rng.random((2, 5, 32, 32, 3)), jnp.float32)
    model = tiny()
    variables = model.init(jax.random.key(0), views, train=False)
    together = model.apply(variables, views, train=False).score
    alone = model.apply(variables, views[1:, 3:4], train=False).score
    np.testing.assert_allclose(together[1:, 3:4], alone, rtol=1e-5, atol=1e-6)


def test_training_equals_one_batch_of_all_views(rng):
    """[b, v] mapped over images equals [1, b·v], where one image holds all views: one batch for the norms."""
    views = jnp.asarray(rng.random((3, 4, 32, 32, 3)), jnp.float32)
    model = tiny()
    variables = model.init(jax.random.key(0), views, train=False)

    def loss(params, views):
        outputs, updated = model.apply(
            variables | {"params": params}, views, train=True, mutable=["batch_stats"]
        )
        return jnp.sin(outputs.score).sum(), updated

    folded = views.reshape(1, 12, 32, 32, 3)
    run = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (ours, stats), gradient = run(variables["params"], views)
    (theirs, folded_stats), folded_gradient = run(variables["params"], folded)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), stats, folded_stats)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), gradient, folded_gradient
    )


@pytest.mark.parametrize(
    ("attention", "layers"),
    [("none", {"whole"}), ("self", {"whole", "patch"}), ("cross", {"whole", "attention", "score"})],
)
def test_heads_by_attention(attention, layers):
    head = linear.LinearHead(3, attention)
    features = {"pooled": jnp.ones((2, 5, 16))}
    (whole, weights, score, *_), variables = head.init_with_output(jax.random.key(0), features, train=False)
    assert set(variables["params"]) == layers
    assert whole.shape == (2, 5, 3)
    if attention == "none":
        assert weights is None
        assert score is None
    else:
        assert bool((weights == score).all()) == (attention == "self")


def test_half_precision_is_close_to_full_precision(rng):
    views = jnp.asarray(rng.random((2, 5, 32, 32, 3)), jnp.float32)
    variables = tiny().init(jax.random.key(0), views, train=False)
    full = tiny().apply(variables, views, train=False).whole
    half = tiny(dtype=jnp.bfloat16).apply(variables, views, train=False)
    assert half.features["layer2"].dtype == jnp.bfloat16
    assert half.whole.dtype == jnp.float32
    np.testing.assert_allclose(half.whole, full, atol=0.03 * np.abs(full).max())


def test_space_to_depth_order():
    x = jnp.arange(4 * 4 * 2).reshape(1, 4, 4, 2)
    folded = resnet.space_to_depth(x, 2)
    assert folded.shape == (1, 2, 2, 8)
    for dy, dx, c in np.ndindex(2, 2, 2):
        assert folded[0, 1, 0, (dy * 2 + dx) * 2 + c] == x[0, 2 + dy, dx, c]


@pytest.mark.parametrize(
    ("name", "attention", "size", "message"),
    [
        (
            "resnet11",
            "cross",
            64,
            "model 'resnet11' is not one of resnet18, .*did you mean 'resnet101'",
        ),
        ("resnet18", "crossed", 64, "branches 'crossed' is not one of none, self, cross"),
        ("resnet18", "cross", 450, r"450 is not divisible by 32 \(resnet18\); try 448 or 480"),
        ("resnet18", "cross", 16, "try 32 or 64"),
    ],
)
def test_invalid_models_are_refused(name, attention, size, message):
    with pytest.raises(InputError, match=message):
        catalogue.create_model(name, 10, attention=attention, image_size=size)


@pytest.mark.parametrize("precision", ["default", "high", "highest"])
def test_every_product_has_the_models_precision_forwards_and_backwards(precision):
    """What XLA is asked for on accelerators; on a CPU all of them are float32."""
    options = catalogue.Model("resnet_small", precision=precision)
    model = catalogue.create(options, 3, 64, catalogue.Patches("cross"))
    views = jnp.zeros((1, 2, 64, 64, 3))
    variables = shapes(model, views)

    def loss(params, batch_stats):
        variables = {"params": params, "batch_stats": batch_stats}
        outputs, _ = model.apply(variables, views, train=True, mutable=["batch_stats"])
        return sum(x.sum() for x in (outputs.whole, outputs.attention, outputs.score))

    traced = jax.jit(jax.grad(loss)).trace(variables["params"], variables["batch_stats"])
    text = traced.lower(lowering_platforms=("cuda",)).as_text()
    products = [
        line
        for line in text.splitlines()
        if "stablehlo.dot_general" in line or "stablehlo.convolution" in line
    ]
    assert len(products) > 20
    named = {"default": "DEFAULT", "high": "HIGH", "highest": "HIGHEST"}[precision]
    assert all(
        f"precision = [{named}, {named}]" in line or f"<precision {named}>" in line for line in products
    ), products[0]
