"""Rematerialisation changes neither variables nor numbers, and takes less memory."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from training import mesh_of

import cfmlc_jax
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.backbones import cnn_mnist, convnext, cvt, resnet, resnet_cifar, swin, tresnet, vit
from cfmlc_jax.models.classifier import Classifier
from cfmlc_jax.models.heads import linear, ml_decoder, query2label

SMALL_RESNET = functools.partial(
    resnet.ResNet, stage_sizes=(2,), block=resnet.BasicBlock, width=4, small_stem=True
)
LINEAR = functools.partial(linear.LinearHead, 3, "cross")
# A backbone, a head, and the size of images.
FAMILIES = {
    "resnet": (
        functools.partial(resnet.ResNet, stage_sizes=(1, 2), block=resnet.Bottleneck, width=4),
        LINEAR,
        16,
    ),
    "tresnet": (
        functools.partial(
            tresnet.TResNet, stage_sizes=(2, 1), blocks=(tresnet.BasicBlock, tresnet.Bottleneck), width=4
        ),
        LINEAR,
        16,
    ),
    "resnet_cifar": (
        functools.partial(resnet_cifar.TwoBranchResNet, stage_sizes=(1, 1), width=4),
        LINEAR,
        8,
    ),
    "cnn_mnist": (cnn_mnist.MnistCNN, LINEAR, 32),
    "swin": (
        functools.partial(swin.Swin, width=8, heads=(1, 2), window=2, depths=(2, 2), drop_path=0.5),
        LINEAR,
        16,
    ),
    "cvt": (
        functools.partial(cvt.CvT, widths=(8, 16), depths=(1, 2), heads=(1, 2), drop_path=0.5),
        LINEAR,
        16,
    ),
    "vit": (
        functools.partial(vit.ViT, width=8, depth=2, heads=2, patch=8, grid=3, drop_path=0.5),
        LINEAR,
        16,
    ),
    "convnext": (
        functools.partial(convnext.ConvNeXt, widths=(4, 8), depths=(1, 2), drop_path=0.5),
        LINEAR,
        16,
    ),
    "query2label": (SMALL_RESNET, functools.partial(query2label.Query2Label, 3, "cross"), 16),
    "ml_decoder": (SMALL_RESNET, functools.partial(ml_decoder.MLDecoder, 3, "cross"), 16),
}


def classifier(family, mode):
    backbone, head, _ = FAMILIES[family]
    options = {} if head is LINEAR else {"remat": mode}
    return Classifier(backbone=backbone(remat=mode), head=head(**options))


@pytest.mark.parametrize("family", FAMILIES)
def test_variables_gradients_and_statistics_are_the_same_in_every_mode(rng, family):
    """In training, with dropout and stochastic depth, whose keys are those of the same layers."""
    size = FAMILIES[family][-1]
    views = jnp.asarray(rng.random((2, 2, size, size, 3)), jnp.float32)
    variables = jax.jit(functools.partial(classifier(family, "none").init, train=False))(
        jax.random.key(0), views
    )

    def gradient(mode):
        model = classifier(family, mode)
        assert jax.eval_shape(
            functools.partial(model.init, train=False), jax.random.key(0), views
        ) == jax.eval_shape(lambda: variables)

        @jax.jit
        @functools.partial(jax.grad, has_aux=True)
        def of_loss(params):
            outputs, updated = model.apply(
                variables | {"params": params},
                views,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(1)},
            )
            logits = outputs.whole + outputs.score * jax.nn.softmax(outputs.attention)
            return jnp.sin(logits).sum(), (logits, updated)

        return of_loss(variables["params"])

    expected = gradient("none")
    assert max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected[0])) > 0
    for mode in ("blocks", "everything"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5 * max(1, np.abs(b).max())),
            gradient(mode),
            expected,
        )


def test_recomputed_blocks_take_less_memory():
    views = jax.ShapeDtypeStruct((2, 1, 64, 64, 3), jnp.float32)
    planned = {}
    for mode in ("none", "blocks"):
        model = Classifier(SMALL_RESNET(stage_sizes=(8,), width=8, remat=mode), linear.LinearHead(3, "none"))
        variables = jax.eval_shape(functools.partial(model.init, train=False), jax.random.key(0), views)

        def loss(params, variables, views, model=model):
            outputs, _ = model.apply(
                variables | {"params": params}, views, train=True, mutable=["batch_stats"]
            )
            return jnp.sin(outputs.whole).sum()

        gradient = jax.jit(jax.grad(loss), compiler_options=meshes.compiler_options(mesh_of(1)))
        compiled = gradient.lower(variables["params"], variables, views).compile()
        planned[mode] = compiled.memory_analysis().temp_size_in_bytes
    assert planned["blocks"] < 0.8 * planned["none"]


def test_the_mode_is_an_option_of_every_model():
    for name in catalogue.names():
        backbone, heads = catalogue.parts(name)
        assert backbone.remat
        for head in heads:
            fields = catalogue.Model(name, head, remat="blocks")
            model = catalogue.create(fields, 3, 448 if backbone.stride < 224 else backbone.stride)
            assert model.backbone.remat == "blocks"
            assert getattr(model.head, "remat", "blocks") == "blocks"
    assert cfmlc_jax.create_model("resnet18", 3, remat="everything").backbone.remat == "everything"
    with pytest.raises(InputError, match="remat 'all' is not one of none, blocks, everything"):
        cfmlc_jax.create_model("resnet18", 3, remat="all")


def test_a_backbone_without_blocks_is_named(monkeypatch):
    entry = catalogue.BACKBONES["resnet_small"]
    monkeypatch.setitem(catalogue.BACKBONES, "resnet_small", entry._replace(remat=False))
    with pytest.raises(InputError, match="model 'resnet_small' has no remat 'blocks'; set it to 'none'"):
        cfmlc_jax.create_model("resnet_small", 3, remat="blocks", image_size=32)
