"""Forward mode and Hessian-vector products of every architecture, small, as it trains."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cfmlc_jax.models import catalogue
from cfmlc_jax.models.backbones import cnn_mnist, convnext, cvt, resnet, resnet_cifar, swin, tresnet, vit
from cfmlc_jax.models.classifier import Classifier
from cfmlc_jax.models.generators import biggan_deep, critics, mnist
from cfmlc_jax.models.heads import linear, map_cells, ml_decoder

# The pieces of which each module of the catalogue has more.
BACKBONES = {
    "resnet18": resnet.ResNet(stage_sizes=(1,), block=resnet.BasicBlock, width=4),
    "resnet50": resnet.ResNet(stage_sizes=(1,), block=resnet.Bottleneck, width=4, small_stem=True),
    "resnet32_cifar": resnet_cifar.TwoBranchResNet(stage_sizes=(1,), width=4),
    "tresnet_l": tresnet.TResNet(stage_sizes=(1,), blocks=(tresnet.Bottleneck,), width=8),
    "swin_b_224": swin.Swin(width=4, heads=(1,), window=4, depths=(1,)),
    "cvt_w24": cvt.CvT(widths=(4,), depths=(1,), heads=(1,)),
    "cnn_mnist": cnn_mnist.MnistCNN(),
    "vit_small_patch14_dinov2": vit.ViT(width=8, depth=1, heads=2, patch=8, grid=3, layer_scale=0.5),
    "convnextv2_tiny": convnext.ConvNeXt(widths=(4,), depths=(1,), response_norm=True),
}
LARGER = {
    "tresnet_l, halving": tresnet.TResNet(stage_sizes=(1, 1), blocks=(tresnet.BasicBlock,) * 2, width=8),
    "swin_b_224, two stages": swin.Swin(width=8, heads=(2, 4), window=4, depths=(2, 1)),
    "cvt_w24, two stages": cvt.CvT(widths=(4, 8), depths=(1, 1), heads=(1, 2)),
    "vit_small_patch16_dinov3": vit.ViT(
        width=16, depth=2, heads=2, patch=8, grid=0, positions=vit.ROTARY, registers=2, pooled=vit.MEAN
    ),
    "convnext_tiny, two stages": convnext.ConvNeXt(widths=(4, 8), depths=(1, 1)),
    "resnext50_32x4d": resnet.ResNet(
        stage_sizes=(1,), block=functools.partial(resnet.Bottleneck, groups=2), width=8, small_stem=True
    ),
}
GENERATORS = {
    "convolutional critic": critics.ConvCritic(ndf=2),
    "linear critic": critics.LinearCritic(ndf=8),
}
LARGER_GENERATORS = {
    "digits": mnist.MnistGenerator(latent=4, ngf=2),
    "BigGAN": biggan_deep.BigGANDeep(
        num_classes=3,
        noise_size=4,
        class_size=4,
        width=8,
        layers=((True, 4, 2),),
        attention=0,
        num_statistics=2,
    ),
}


def cases(fast, slow):
    return [
        *(pytest.param(module, id=name) for name, module in fast.items()),
        *(pytest.param(module, id=name, marks=pytest.mark.slow) for name, module in slow.items()),
    ]


def drawn(tree, generator):
    """Arrays of these shapes, about as large as layers start."""

    def normal(leaf):
        deviation = math.prod(leaf.shape[:-1]) ** -0.5
        return (generator.normal(size=leaf.shape) * deviation).astype(leaf.dtype)

    return jax.tree.map(normal, tree)


def assert_derivatives(module, *inputs):
    """Tangents agree with gradients, and the Hessian, of which products are finite, is symmetric."""
    generator = np.random.default_rng(0)
    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(0)}
    variables = jax.eval_shape(lambda: module.init(rngs, *inputs, train=False))
    state = jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), variables.get("batch_stats", {}))
    params, u, w = (drawn(variables["params"], generator) for _ in range(3))

    def loss(params):
        variables = {"params": params, "batch_stats": state}
        outputs, _ = module.apply(variables, *inputs, train=True, mutable=["batch_stats"], rngs=rngs)
        return sum(jnp.sin(leaf).mean() for leaf in jax.tree.leaves(outputs))

    @jax.jit
    def along(params, directions):
        """The loss and its gradient, and their tangents along each direction."""
        return jax.lax.map(
            lambda direction: jax.jvp(jax.value_and_grad(loss), (params,), (direction,)), directions
        )

    (_, gradients), (slopes, products) = along(params, jax.tree.map(lambda *pair: jnp.stack(pair), u, w))
    gradient, hu, hw = (
        jax.tree.map(lambda x, i=i: x[i], tree) for tree, i in ((gradients, 0), (products, 0), (products, 1))
    )
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((gradient, products)))
    np.testing.assert_allclose(slopes, [inner(gradient, u), inner(gradient, w)], rtol=1e-3, atol=1e-5)
    scale = math.sqrt(inner(hu, hu) * inner(w, w))
    assert scale > 0
    np.testing.assert_allclose(inner(w, hu), inner(u, hw), atol=1e-4 * scale)


def inner(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return sum(float(np.vdot(np.float64(x), np.float64(y))) for x, y in pairs)


@pytest.mark.parametrize("backbone", cases(BACKBONES, LARGER))
def test_backbones(backbone):
    views = jnp.asarray(np.random.default_rng(1).random((2, 1, 32, 32, 3)), jnp.float32)
    assert_derivatives(Classifier(backbone=backbone, head=linear.LinearHead(3, "cross")), views)


@pytest.mark.parametrize("name", [*catalogue.HEADS, "cells of a map"])
def test_heads(name):
    x = jnp.asarray(np.random.default_rng(1).normal(size=(2, 1, 2, 2, 8)), jnp.float32)
    if name == "cells of a map":
        head = map_cells.MapCells(3, "cross", "map", background=True)
    elif name == "ml_decoder":
        head = ml_decoder.MLDecoder(3, "none", queries=2)
    else:
        head = catalogue.HEADS[name].create(3, "none", dtype=jnp.float32)
    assert_derivatives(head, {"map": x, "pooled": x.mean(axis=(2, 3))})


@pytest.mark.parametrize("module", cases(GENERATORS, LARGER_GENERATORS))
def test_generators(module):
    generator = np.random.default_rng(1)

    def two(x):  # labels and offsets stay 0
        x = jnp.concatenate([x, x])
        return x if x.dtype != jnp.float32 else jnp.asarray(generator.uniform(size=x.shape), x.dtype)

    assert_derivatives(module, *jax.tree.map(two, module.example()))


def test_every_backbone_has_a_tested_family():
    kinds = {getattr(backbone.create, "func", backbone.create) for backbone in catalogue.BACKBONES.values()}
    assert kinds == {type(backbone) for backbone in BACKBONES.values()}
