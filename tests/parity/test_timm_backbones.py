"""ViT and ConvNeXt against timm's own models with the same random weights: entries, features, logits, gradients."""

import functools
import re

import jax
import numpy as np
import pytest

from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.models.backbones import convnext, vit
from cfmlc_jax.torch_weights import mlc_pat

torch = pytest.importorskip("torch", reason="PyTorch is an optional extra: pip install 'cfmlc_jax[torch]'")
timm = pytest.importorskip("timm", reason="the models are timm's: pip install 'cfmlc_jax[parity]'")

CLASSES = 5
NAMES = [*vit.MODELS, *convnext.MODELS]
# timm's name for SigLIP without pooling by attention.
GAP = "vit_base_patch16_siglip_gap_224"


def shapes(name, **options):
    """Entries of timm's model, which take no memory."""
    with torch.device("meta"):
        entries = timm.create_model(name, **options).state_dict()
    return {key: np.broadcast_to(np.float32(0), tuple(entry.shape)) for key, entry in entries.items()}


def recognised(entries):
    """The names that entries are recognised as."""
    try:
        return {mlc_pat.recognise(entries)}
    except InputError as error:
        fitting = re.fullmatch(r"the weights fit (.*); choose one by --model", str(error))
        if fitting is None:
            raise
        return set(fitting[1].split(" and "))


@pytest.mark.parametrize(
    ("name", "classes"),
    [
        *((name, CLASSES) for name in NAMES),
        *((name, 0) for name in ("vit_small_patch14_dinov2", "vit_base_patch16_siglip_224", "convnext_tiny")),
    ],
)
def test_every_model_is_recognised_by_timms_entries(name, classes):
    """CLIP's models differ from those with its quick GELU in nothing that is stored."""
    entries = shapes(GAP if "siglip" in name and classes else name, num_classes=classes)
    quick, exact = "_clip_quickgelu_224", "_clip_224"
    expected = {name, name.replace(exact, quick), name.replace(quick, exact)}
    assert recognised(entries) == expected
    assert mlc_pat.architecture(name, entries).num_classes == classes


def test_pooling_by_attention_is_not_read_unless_a_head_needs_it():
    name = "vit_base_patch16_siglip_224"
    assert "attn_pool.latent" in shapes(name, num_classes=0)  # and recognised, above
    with pytest.raises(InputError, match=rf"not the weights of {name}: \d+ left over: attn_pool\.latent"):
        mlc_pat.recognise(shapes(name, num_classes=CLASSES))


# timm's name, its options of a small model, and ours. Names are recognised by shapes, so no two may be alike.
SMALL = {"embed_dim": 16, "depth": 3, "num_heads": 2}
OURS = {"width": 16, "depth": 3, "heads": 2}
TINY = {
    "vit_small_patch16_224": (SMALL | {"img_size": 48}, OURS | {"grid": 3}),
    "vit_base_patch16_clip_quickgelu_224": (SMALL | {"img_size": 48}, OURS | {"grid": 3}),
    GAP: (SMALL | {"img_size": 48}, OURS | {"grid": 3}),
    "vit_small_patch14_dinov2": (SMALL | {"img_size": 70}, OURS | {"grid": 5}),
    "vit_small_patch14_reg4_dinov2": (SMALL | {"img_size": 70}, OURS | {"grid": 5}),
    "vit_small_patch16_dinov3": (SMALL, OURS),
    "convnext_tiny": (
        {"dims": (4, 8, 8, 16), "depths": (1, 1, 1, 1)},
        {"widths": (4, 8, 8, 16), "depths": (1, 1, 1, 1)},
    ),
    "convnextv2_tiny": (
        {"dims": (4, 8, 8, 16), "depths": (1, 1, 1, 1)},
        {"widths": (4, 8, 8, 16), "depths": (1, 1, 1, 1)},
    ),
}


def drawn(model):
    """timm's model with random weights of which each matters: norms and scales are about 1, kernels keep the size."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in ("pos_embed", "cls_token", "reg_token"):
                parameter.normal_(0, 0.5, generator=generator)
            elif parameter.ndim > 1:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
            elif name.endswith("bias"):
                parameter.normal_(0, 0.3, generator=generator)
            else:
                parameter.uniform_(0.5, 1.5, generator=generator)
    return model.eval()


@pytest.fixture(params=TINY)
def pair(request, monkeypatch):
    """(timm's small model, our name for it)."""
    theirs, ours = TINY[request.param]
    sizes = {"dynamic_img_size": True} if request.param.startswith("vit_") else {}
    model = drawn(timm.create_model(request.param, num_classes=CLASSES, **theirs, **sizes))
    backbone = catalogue.BACKBONES[request.param.replace("siglip_gap", "siglip")]
    name = f"tiny {request.param}"
    create = functools.partial(backbone.create, drop_path=0.0, **ours)
    monkeypatch.setitem(catalogue.BACKBONES, name, backbone._replace(create=create))
    return model, name


def test_features_logits_and_gradients(pair):
    """Of images smaller and larger than those for which positions are learned, and the gradients of all parameters."""
    theirs, name = pair
    entries = {key: tensor.numpy() for key, tensor in theirs.state_dict().items()}
    variables = mlc_pat.from_torch(name, entries)
    back = mlc_pat.to_torch(name, variables)
    assert back.keys() == entries.keys()
    assert all((back[key] == entries[key]).all() for key in entries)
    stride = catalogue.BACKBONES[name].stride
    sizes = (2 * stride, 8 * stride) if stride < 32 else (64,)
    ours = mlc_pat.model(name, mlc_pat.architecture(name, entries))
    views = [np.random.default_rng(size).random((1, 2, size, size, 3), np.float32) for size in sizes]

    @jax.jit
    def run(params):
        def loss(params):
            outputs = [ours.apply({"params": params}, each, train=True) for each in views]
            return sum((each.whole**2).sum() for each in outputs), outputs

        return jax.grad(loss, has_aux=True)(params)

    gradients, outputs = run(variables["params"])
    images = [torch.from_numpy(each[0]).permute(0, 3, 1, 2) for each in views]
    logits = [theirs(each) for each in images]
    for output, image, logit in zip(outputs, images, logits):
        tokens = theirs.forward_features(image)
        if name.endswith(tuple(convnext.MODELS)):
            expected = theirs.head.norm(tokens).permute(0, 2, 3, 1)
        else:
            h, w = output.features["map"].shape[2:4]
            expected = tokens[:, theirs.num_prefix_tokens :].unflatten(1, (h, w))
        near(output.features["map"][0], expected.detach(), 1e-5)
        near(output.whole[0], logit.detach(), 1e-5)
    sum((logit**2).sum() for logit in logits).backward()
    expected = {key: parameter.grad.numpy() for key, parameter in theirs.named_parameters()}
    actual = mlc_pat.to_torch(name, {"params": jax.device_get(gradients)})
    for key, gradient in expected.items():
        near(actual[key], gradient, 2e-5 * max(1, np.abs(gradient).max()), key)


OPENAI, TRANSFORMERS = "OpenAI's CLIP or OpenCLIP", "the package transformers"
TORCHVISION = {"image_size": 48, "patch_size": 16, "num_layers": 3, "num_heads": 2, "hidden_dim": 16, "mlp_dim": 64}  # fmt: skip


@pytest.mark.parametrize("published", [False, True], ids=["new_names", "names_of_published_files"])
def test_a_vit_of_torchvision(monkeypatch, published):
    models = pytest.importorskip("torchvision").models
    theirs = drawn(models.VisionTransformer(**TORCHVISION, num_classes=CLASSES))
    entries = {key: tensor.detach().numpy() for key, tensor in theirs.state_dict().items()}
    if published:
        entries = {
            key.replace(".mlp.0.", ".mlp.linear_1.").replace(".mlp.3.", ".mlp.linear_2."): array
            for key, array in entries.items()
        }
        theirs.load_state_dict({key: torch.from_numpy(array) for key, array in entries.items()})
    backbone = catalogue.BACKBONES["vit_base_patch16_224"]
    create = functools.partial(backbone.create, **OURS, grid=3)
    monkeypatch.setitem(catalogue.BACKBONES, "tiny", backbone._replace(create=create))
    assert mlc_pat.recognise(entries) == "tiny"
    arch = mlc_pat.architecture("tiny", entries)
    variables = mlc_pat.from_torch("tiny", entries)
    views = np.random.default_rng(0).random((2, 1, 48, 48, 3), np.float32)
    run = jax.jit(functools.partial(mlc_pat.model("tiny", arch).apply, train=False))
    with torch.no_grad():
        near(
            run(variables, views).whole[:, 0], theirs(torch.from_numpy(views[:, 0]).permute(0, 3, 1, 2)), 1e-5
        )
    assert mlc_pat.normalisation("tiny", arch._replace(num_classes=1000)) == "imagenet"
    assert mlc_pat.normalisation("tiny", arch._replace(num_classes=1000, writer="")) == "half"
    with pytest.raises(InputError, match=r"1 missing: encoder\.ln\.bias"):
        mlc_pat.from_torch("tiny", {key: entries[key] for key in entries if key != "encoder.ln.bias"})


@pytest.mark.parametrize(
    ("key", "writer"),
    [
        ("transformer.resblocks.0.attn.in_proj_weight", OPENAI),
        ("visual.transformer.resblocks.0.attn.in_proj_weight", OPENAI),
        ("vision_model.encoder.layers.0.self_attn.q_proj.weight", TRANSFORMERS),  # CLIP, SigLIP
        ("encoder.layer.0.attention.attention.query.weight", TRANSFORMERS),  # ViT, DINOv2
        ("layer.0.attention.q_proj.weight", TRANSFORMERS),  # DINOv3
    ],
)
def test_other_names_of_a_vit_are_refused(key, writer):
    name = "vit_base_patch16_clip_quickgelu_224"
    for read in (mlc_pat.recognise, functools.partial(mlc_pat.from_torch, name)):
        with pytest.raises(InputError, match=f"named as by {writer}, .*; take timm's weights"):
            read({key: np.zeros((48, 16), np.float32)})


def near(actual, expected, tolerance, what=""):
    np.testing.assert_allclose(np.asarray(actual), np.asarray(expected), rtol=0, atol=tolerance, err_msg=what)
