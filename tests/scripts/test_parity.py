"""The comparison with the reference: its flags and verdicts, and with PyTorch its stand-ins."""

import functools
import importlib.util
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from PIL import Image

from cfmlc_jax.errors import InputError
from cfmlc_jax.models import catalogue
from cfmlc_jax.optim import build as optim
from cfmlc_jax.torch_weights import mlc_pat
from scripts.parity import __main__ as command
from scripts.parity import inputs, observed, recipe, subject, tables, verdicts
from scripts.parity import ours as our_side


@pytest.fixture(scope="module")
def torch_side():
    """The modules of the comparison that need PyTorch."""
    pytest.importorskip("torch", reason="the stand-ins are PyTorch's; pip install 'cfmlc_jax[torch]'")
    from scripts.parity import checkout, random_weights, stand_ins

    return SimpleNamespace(checkout=checkout, random_weights=random_weights, stand_ins=stand_ins)


# --- Flags --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=resnet101"], "the following arguments are required: --reference; --help lists"),
        (["--reference=x", "--model=resnet-101"], "'resnet-101' is not one of .*did you mean 'resnet101'"),
        (["--reference=x", "--model=resnet50"], "'resnet50' is not one that MLC-PAT builds: resnet101, "),
        (["--reference=x", "--model=resnet101", "--size=100"], r"not divisible by 32 \(resnet101\); try 96"),
        (["--reference=x", "--model=resnet101", "--batch=0"], "'0' is not a whole number of 1 or more"),
        (["--reference=x", "--model=resnet101", "--attention=both"], "--attention: invalid choice: 'both'"),
        (["--reference=x", "--model=resnet101", "--dtype=float16"], "--dtype: invalid choice: 'float16'"),
    ],
)
def test_invalid_flags_are_refused(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        command.parse(arguments)
    assert "\n" not in str(error.value)


def test_names_of_the_reference():
    assert subject.reference_name("tresnet_l") == "tresnetl"
    assert subject.reference_name("q2l_tresnet_l_v2") == "q2l_tresnetl_v2"
    assert subject.reference_name("q2l_resnet18") == "q2l_resnet18"


def test_without_torch():
    command.check_torch(True)
    with pytest.raises(InputError, match=r"needs PyTorch \(the CPU build is enough\); pip install"):
        command.check_torch(False)


def test_a_folder_that_is_not_a_checkout_is_refused(tmp_path, capsys):
    (tmp_path / "run_PAT-T.py").touch()
    assert command.main([f"--reference={tmp_path}", "--model=resnet101"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("error: --reference=")
    assert "is not a checkout of MLC-PAT: run_asl.py is missing; git clone" in err
    assert err.count("\n") == 1


# --- Verdicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("difference", "tolerance", "expected"),
    [
        (1e-6, 1e-5, "agrees"),
        (1e-5, 1e-6, "differs"),
        (0.2, 0.5, "rounding"),
        (0.01, 0.5, "agrees"),
        (0.6, 0.5, "differs"),
        (float("nan"), 0.5, "differs"),
        (0.1, float("nan"), "differs"),
    ],
)
def test_verdicts(difference, tolerance, expected):
    assert verdicts.verdict(difference, tolerance) == expected


def test_tolerance_is_ten_times_the_rounding(rng):
    exact = rng.standard_normal((2, 50))
    length = np.linalg.norm(exact)
    theirs, ours = exact.copy(), exact.copy()
    theirs[0, 0] += 1e-5 * length
    ours[0, 0] -= 5e-5 * length
    row = verdicts.compare("map", "[2, 50]", ours, theirs, exact)
    assert row.rounding == pytest.approx(1e-5, rel=1e-3)
    assert row.tolerance == pytest.approx(1e-4, rel=1e-3)
    assert row.relative == pytest.approx(6e-5, rel=1e-3)
    assert row.difference == pytest.approx(6e-5 * length, rel=1e-3)
    assert row.verdict == "agrees"
    ours[0, 0] -= 6e-5 * length
    assert verdicts.compare("map", "[2, 50]", ours, theirs, exact).verdict == "differs"
    assert verdicts.compare("map", "[2, 50]", ours, theirs, exact, known=2e-5).verdict == "agrees"
    assert verdicts.compare("one", "1 number", 1.0, 1.0, 1.0).tolerance == 10 * 2.0**-23


def test_rounding_only_grows_from_stage_to_stage(rng):
    exact = {name: rng.standard_normal((1, 2, 3)) for name in ("stem", "pooled")}
    theirs = {"stem": exact["stem"] * (1 + 1e-4), "pooled": exact["pooled"]}
    ours = {"stem": exact["stem"], "pooled": exact["pooled"] * (1 + 5e-4), "more": exact["stem"]}
    first, second = verdicts.stage_rows(ours, theirs, exact)
    assert (first.stage, first.shape, second.stage) == ("stem", "[1, 2, 3]", "pooled")
    assert second.tolerance == first.tolerance
    assert [first.verdict, second.verdict] == ["agrees", "agrees"]
    with pytest.raises(InputError, match=r"pooled: the reference has \[1, 2, 3\], ours nothing"):
        verdicts.stage_rows({"stem": exact["stem"]}, theirs, exact)


KERNEL, BIAS = ("params", "head", "whole", "kernel"), ("params", "backbone", "layer1_0", "bias")
STILL, MEAN = ("params", "backbone", "conv1", "kernel"), ("batch_stats", "backbone", "bn1", "mean")


def step(rng, **changed):
    """A step whose BIAS has a gradient of nothing but rounding, and whose STILL is not trained."""
    noise = 1e-6 * rng.standard_normal(8)
    gradient = {KERNEL: np.arange(1.0, 9) * (1 + noise), BIAS: noise, STILL: np.full(8, np.nan)}
    moved = {KERNEL: np.full(8, -4e-6) * (1 + noise), BIAS: 4e-6 * np.sign(noise), STILL: np.zeros(8)}
    change = moved | {MEAN: np.full(8, 0.1) * (1 + noise)} | changed.pop("change", {})
    average = {path: 0.1 * values for path, values in change.items()} | changed.pop("average", {})
    fields = {"loss": 3.0, "settings": np.array([4e-6, 0.95, 0.999, 1e-8, 1e-4])} | changed
    return observed.Step(gradient=gradient, change=change, average=average, **fields)


def rows_of_steps(rng, **changed):
    ours, theirs, exact = step(rng, **changed), step(rng), step(rng)
    rows = verdicts.step_rows([ours], [theirs], [exact], known=1e-3, known_change=1e-3)
    return {row.stage.removeprefix("step 1: "): row for row in rows}


def test_steps_that_agree(rng):
    rows = rows_of_steps(rng)
    verdicts = {stage: row.verdict for stage, row in rows.items()}
    # That gradient is inconclusive, and the parameters that Adam updates with it are left out.
    assert verdicts.pop("gradient of layer1") == "rounding"
    assert set(verdicts.values()) == {"agrees"}
    assert "gradient of stem" not in rows
    assert rows["change of parameters"].shape == "16 numbers"
    assert rows["change of statistics"].shape == "8 numbers"
    assert "change of layer1" not in rows


@pytest.mark.parametrize(
    ("changed", "stage"),
    [
        ({"loss": 3.001}, "loss"),
        ({"settings": np.array([4e-6, 0.9, 0.999, 1e-8, 1e-4])}, "settings"),
        ({"settings": np.array([4e-6, 0.95, 0.999, 1e-8, 1e-2])}, "settings"),
        ({"change": {KERNEL: np.full(8, -5e-6)}}, "change of head whole"),
        ({"change": {STILL: np.full(8, 1e-6)}}, "change of parameters"),
        ({"change": {MEAN: np.full(8, 0.2)}}, "change of statistics"),
        ({"average": {KERNEL: np.full(8, -4e-6) * 0.2}}, "change of averaged parameters"),
    ],
)
def test_steps_that_differ(rng, changed, stage):
    assert rows_of_steps(rng)[stage].verdict == "agrees"
    assert rows_of_steps(rng, **changed)[stage].verdict == "differs"


def test_rounding_from_relus_that_switch():
    rows = [verdicts.Row("map", "", 0.0, 0.0, rounding, 0.0, "agrees") for rounding in (4e-6, 1e-6)]
    assert verdicts.kinks(rows, np.zeros((1, 5, 40, 50, 100))) == pytest.approx(2e-3)
    assert verdicts.kinks(rows, np.zeros((1, 5, 2, 2, 500))) == pytest.approx(1e-2)


def test_parameters_with_rounding_gradients_are_left_out(rng):
    """Adam gives a gradient of 1 % of the array's the same step as all others, and its sign may be rounding."""
    sides = [step(rng) for _ in range(3)]
    for side in sides:
        side.gradient[KERNEL][0] = 0.01
    rows = {
        row.stage: row
        for row in verdicts.step_rows(*([side] for side in sides), known=1e-2, known_change=1e-2)
    }
    assert rows["step 1: change of head whole"].shape == "7 numbers"
    rows = {
        row.stage: row
        for row in verdicts.step_rows(*([side] for side in sides), known=1e-5, known_change=1e-5)
    }
    assert rows["step 1: change of head whole"].shape == "8 numbers"


def row(stage="map", verdict="agrees"):
    return verdicts.Row(stage, "[1, 2]", 1.234e-5, 1e-6, 2e-7, 2e-6, verdict)


def test_table():
    lines = tables.table([row(), row("whole logits", "differs")]).splitlines()
    assert len({len(line) for line in lines}) == 1
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]
    assert cells[0] == [
        "stage",
        "shape",
        "max abs difference",
        "relative",
        "rounding",
        "tolerance",
        "verdict",
    ]
    assert set("".join(cells[1])) == {"-"}
    assert cells[2] == ["map", "[1, 2]", "1.2e-05", "1.0e-06", "2.0e-07", "2.0e-06", "agrees"]
    assert cells[3][-1] == "differs"


def test_summary():
    rows = [row(), row("loss", "rounding"), row("stem", "differs")]
    assert tables.summary(rows[:1]) == "1 of 1 stages agree"
    assert tables.summary(rows[:2]).startswith(
        "1 of 2 stages agree; 1 inconclusive, because PyTorch's own rounding"
    )
    assert tables.summary(rows).endswith("; first to differ: stem")
    assert tables.summary([row(verdict="–")]) == "distances without verdicts"


@pytest.mark.parametrize(("verdict", "code"), [("agrees", 0), ("rounding", 2), ("–", 0), ("differs", 1)])
def test_exit_code(tmp_path, monkeypatch, capsys, verdict, code):
    for file in command.FILES:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    monkeypatch.setattr(command, "run", lambda flags, checkout: [row(), row("loss", verdict)])
    monkeypatch.setattr(command, "check_torch", lambda installed: None)
    assert command.main([f"--reference={tmp_path}", "--model=resnet101"]) == code
    out = capsys.readouterr().out
    assert out.startswith("resnet101, 2 images of 5 views of 128 px, float32\n\n| stage")


def test_a_difference_outweighs_an_inconclusive_stage():
    assert command.exit_code([row(verdict="rounding"), row(verdict="differs"), row()]) == 1


# --- Our side -----------------------------------------------------------------------------------


def test_samples_of_equal_shapes_are_of_the_same_places():
    size = 3 * observed.SAMPLE
    places = {"a": {"kernel": np.arange(size).reshape(3, -1)}, "b": np.arange(4)}
    values = observed.sample(places)
    assert values["a", "kernel"].shape == (observed.SAMPLE,)
    assert len(np.unique(values["a", "kernel"])) > observed.SAMPLE / 2
    again = observed.sample({"a": {"kernel": np.arange(size)}})
    np.testing.assert_array_equal(values["a", "kernel"], again["a", "kernel"])
    np.testing.assert_array_equal(values["b",], np.arange(4))


def test_groups():
    paths = [KERNEL, BIAS, STILL, ("params", "backbone", "layer3_17", "conv2", "bn", "scale")]
    assert [observed.group_of(path) for path in paths] == ["head whole", "layer1", "stem", "layer3"]


def test_a_recording_optimizer_is_the_same_optimizer():
    params, gradient = {"w": jnp.array([1.0, -2.0])}, {"w": jnp.array([0.5, 0.25])}
    plain, recording = optax.adam(0.1), our_side.recording(optax.adam(0.1))
    expected, _ = plain.update(gradient, plain.init(params), params)
    updates, state = recording.update(gradient, recording.init(params), params)
    np.testing.assert_array_equal(updates["w"], expected["w"])
    np.testing.assert_array_equal(state.gradient["w"], gradient["w"])


def test_our_side_is_the_training_step():
    model = catalogue.create_model("resnet_small", 3, attention="cross", image_size=32)
    init = jax.jit(functools.partial(model.init, train=False))
    variables = jax.tree.map(np.asarray, init(jax.random.key(0), jnp.zeros((1, 1, 32, 32, 3))))
    views = inputs.waves(2, 32, seed=0)
    labels = np.array([[1, 0, 0], [0, 1, 1]], np.float32)
    stages = our_side.evaluate(model, variables, views, attention="cross")
    assert {name: x.shape for name, x in stages.items() if "logits" in name} == {
        "whole logits": (2, 5, 3),
        "attention logits": (2, 5, 3),
        "score logits": (2, 5, 3),
        "pooled patch logits": (2, 3),
    }
    weights = np.exp(stages["attention logits"][:, 1:])
    weights /= weights.sum(axis=1, keepdims=True)
    pooled = (weights * stages["score logits"][:, 1:]).sum(axis=1)
    np.testing.assert_allclose(stages["pooled patch logits"], pooled, rtol=1e-5)

    faster = SimpleNamespace(
        LEARNING_RATE=1e-3, WEIGHT_DECAY=1e-4, EPOCHS=2, STEPS_PER_EPOCH=50, PCT_START=0.2, EMA_DECAY=0.9
    )
    one, two = our_side.train(model, variables, [(views, labels)] * 2, attention="cross", recipe=faster)
    np.testing.assert_allclose(one.settings, [4e-5, 0.95, 0.999, 1e-8, 1e-4], rtol=1e-5)
    assert two.loss < one.loss
    loud = np.abs(one.gradient[KERNEL]) > 1e-3
    # Adam's first step is the learning rate against the gradient's sign; the average takes a tenth of it.
    np.testing.assert_allclose(
        one.change[KERNEL][loud], -4e-5 * np.sign(one.gradient[KERNEL][loud]), rtol=1e-2
    )
    np.testing.assert_allclose(one.average[KERNEL], 0.1 * one.change[KERNEL], atol=1e-8)
    assert np.abs(one.change[MEAN]).max() > 0


@pytest.mark.parametrize(
    ("weights", "known_change"),
    [(0.05, 0.0), (1.0, verdicts.FAINT_CHANGE)],  # as large as those of convolutions and of norms
)
def test_changes_in_float64_show_the_weight_decay(rng, weights, known_change):
    """Adam's first step by hand, and by the optimiser of our side, which is told to decay or not."""
    gradient, params = rng.standard_normal(50), weights * rng.standard_normal(50)
    direction = gradient / (np.abs(gradient) + 1e-8)

    def step_of(change):
        return observed.Step(3.0, np.ones(5), {KERNEL: gradient}, {KERNEL: change}, {KERNEL: 0.1 * change})

    def ours(weight_decay):
        with jax.enable_x64(True):
            optimizer = optim.adamw_one_cycle(
                max_lr=recipe.LEARNING_RATE, total_steps=100, weight_decay=weight_decay
            )
            change, _ = optimizer.update(
                jnp.array(gradient), optimizer.init(jnp.array(params)), jnp.array(params)
            )
        return step_of(np.asarray(change))

    theirs = step_of(-recipe.LEARNING_RATE / 25 * (direction + recipe.WEIGHT_DECAY * params))
    for weight_decay, expected in ((recipe.WEIGHT_DECAY, "agrees"), (0.0, "differs")):
        rows = verdicts.step_rows(
            [ours(weight_decay)], [theirs], [theirs], known=verdicts.FAINT, known_change=known_change
        )
        found = {row.stage: row.verdict for row in rows}
        assert found["step 1: change of parameters"] == expected
        assert found["step 1: change of averaged parameters"] == expected
        assert found["step 1: settings"] == "agrees"


def test_waves_differ_between_views_and_seeds():
    views = inputs.waves(2, 32, seed=3)
    assert (views.shape, views.dtype) == ((2, 5, 32, 32, 3), np.uint8)
    np.testing.assert_array_equal(views, inputs.waves(2, 32, seed=3))
    assert (views != inputs.waves(2, 32, seed=4)).mean() > 0.9
    assert (views[0, 0] != views[0, 1]).mean() > 0.9
    assert 20 < views.std() < 128


def test_photos_repeat_after_the_last(tmp_path):
    for i in range(3):
        Image.new("RGB", (40, 30), (80 * i, 0, 0)).save(tmp_path / f"{i}.png")
    views = [inputs.photos(tmp_path, 2, 16, step) for step in range(2)]
    assert views[0].shape == (2, 5, 16, 16, 3)
    assert [int(x[i, 0, 0, 0, 0]) for x in views for i in range(2)] == [0, 80, 160, 0]
    with pytest.raises(InputError, match=r"--images=.*none is not a folder"):
        inputs.photos(tmp_path / "none", 2, 16, 0)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"has no file \.jpg, \.jpeg, \.png"):
        inputs.photos(tmp_path / "empty", 2, 16, 0)


# --- With PyTorch -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["resnet18", "resnet101"])
def test_stand_in_has_the_entries_of_torchvision(torch_side, name):
    model = catalogue.create_model(name, 1000, attention="none", image_size=64)
    abstract = jax.eval_shape(
        functools.partial(model.init, train=False), jax.random.key(0), jnp.zeros((1, 1, 64, 64, 3))
    )
    variables = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), abstract)
    wanted = {key: array.shape for key, array in mlc_pat.to_torch(name, variables).items()}
    stand_in = torch_side.stand_ins.torchvision_stand_in()["torchvision.models"]
    state_dict = getattr(stand_in, name)().state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in state_dict.items()} == wanted


def test_stand_in_computes_what_we_do(torch_side):
    import torch

    stand_in = torch_side.stand_ins.ResNet(*torch_side.stand_ins.RESNETS["resnet18"]).eval()
    weights = torch_side.random_weights.fill(stand_in, seed=0)
    stand_in.load_state_dict({key: torch.from_numpy(array) for key, array in weights.items()}, strict=False)
    views = inputs.waves(1, 64, seed=0)
    with torch.no_grad():
        pixels = torch.from_numpy(views[0].transpose(0, 3, 1, 2).astype(np.float32) / 255)
        wanted = stand_in(pixels).numpy()
    model = catalogue.create_model("resnet18", 1000, attention="none", image_size=64)
    variables = mlc_pat.from_torch("resnet18", weights)
    ours = our_side.evaluate(model, variables, views, attention="none")
    np.testing.assert_allclose(ours["whole logits"][0], wanted, atol=1e-5 * np.abs(wanted).max())


def test_maps_of_layers(torch_side):
    import torch

    net = torch_side.stand_ins.ResNet(*torch_side.stand_ins.RESNETS["resnet18"])
    getter = torch_side.stand_ins.IntermediateLayerGetter(net, {"layer2": "half", "layer4": "last"})
    assert list(getter) == ["conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"]
    maps = getter(torch.zeros(1, 3, 64, 64))
    assert {name: tuple(x.shape) for name, x in maps.items()} == {
        "half": (1, 128, 8, 8),
        "last": (1, 512, 2, 2),
    }


@pytest.mark.parametrize(("activation", "slope"), [("leaky_relu", 0.01), ("identity", 1.0)])
@pytest.mark.parametrize("train", [True, False])
def test_in_place_norm_by_hand(torch_side, rng, activation, slope, train):
    import torch

    norm = torch_side.stand_ins.InPlaceABN(3, activation=activation, activation_param=0.01, group=None).train(
        train
    )
    assert list(norm.state_dict()) == ["weight", "bias", "running_mean", "running_var"]
    weight, bias = np.array([-1.5, 0.0, 2.0]), np.array([0.1, 0.2, -0.3])
    mean, var = np.array([0.5, 0.0, -1.0]), np.array([1.0, 4.0, 0.25])
    entries = {"weight": weight, "bias": bias, "running_mean": mean, "running_var": var}
    norm.load_state_dict({key: torch.from_numpy(array) for key, array in entries.items()})
    norm.double()
    x = rng.standard_normal((4, 3, 5, 5))
    y = norm(torch.from_numpy(x)).detach().numpy()
    used = (x.mean((0, 2, 3)), x.var((0, 2, 3))) if train else (mean, var)
    centred = x - used[0][:, None, None]
    scale = (np.abs(weight) + 1e-5) / np.sqrt(used[1] + 1e-5)
    linear = centred * scale[:, None, None] + bias[:, None, None]
    np.testing.assert_allclose(y, np.where(linear > 0, linear, slope * linear), rtol=1e-6, atol=1e-9)
    moved = 0.1 * (x.var((0, 2, 3), ddof=1) - var) if train else 0
    np.testing.assert_allclose(norm.running_var.numpy(), var + moved, rtol=1e-6)


def test_in_place_norm_knows_its_activations(torch_side):
    with pytest.raises(ValueError, match="activation 'relu' is not leaky_relu or identity"):
        torch_side.stand_ins.InPlaceABN(3, activation="relu", activation_param=0.01)


def test_fill_is_a_function_of_seed_and_key(torch_side):
    from torch import nn

    block = torch_side.stand_ins.ResidualBlock(8, 8, 1, 2, nn.BatchNorm2d)
    net = nn.ModuleDict(
        {"a": block, "n": torch_side.stand_ins.InPlaceABN(8, activation="identity", activation_param=0.0)}
    )
    weights, again, other = (torch_side.random_weights.fill(net, seed=seed) for seed in (0, 0, 1))
    assert weights.keys() == {key for key in net.state_dict() if not key.endswith("num_batches_tracked")}
    assert all((weights[key] == again[key]).all() and (weights[key] != other[key]).all() for key in weights)
    assert all(array.dtype == np.float32 for array in weights.values())
    assert (np.sign(weights["n.weight"]) == [1, -1] * 4).all()
    assert (weights["a.bn2.weight"] < 0.3).all()
    assert (weights["a.bn1.weight"] >= 1).all()
    assert weights["a.conv1.weight"].std() == pytest.approx((3 / 72) ** 0.5, rel=0.2)


def test_importing_the_reference_leaves_no_modules(torch_side, tmp_path):
    before = dict(sys.modules)
    (tmp_path / "beside.py").write_text("class Base: ...\n")
    (tmp_path / "run.py").write_text(
        "import importlib.util, torch, torchvision\n"
        # As PyTorch's own compiler does, which torchvision imports.
        "specs = [importlib.util.find_spec(name) for name in ('sklearn', 'timm.models', 'inplace_abn')]\n"
        "from torch.utils.tensorboard import SummaryWriter\n"
        "from torch.cuda.amp import GradScaler, autocast\n"
        "from inplace_abn import InPlaceABN, InPlaceABNSync\n"
        "from torchvision import datasets as datasets\n"
        "from timm.models.layers import DropPath\n"
        "from beside import Base\n"
        "class Photos(datasets.coco.CocoDetection): ...\n"
        "@torch.jit.script\n"
        "class Kept(Base): ...\n"
        "print('not heard')\n"
    )
    script = torch_side.checkout.load_script(tmp_path, "run.py")
    assert script.InPlaceABNSync is torch_side.stand_ins.InPlaceABN
    assert script.Kept.__mro__[1].__name__ == "Base"
    with script.autocast():
        assert script.GradScaler is torch_side.checkout.PlainScaler
    assert [spec.name for spec in script.specs] == ["sklearn", "timm.models", "inplace_abn"]
    left = {name for name, module in sys.modules.items() if isinstance(module, torch_side.stand_ins.StandIn)}
    assert left == set()
    assert {name: sys.modules[name] for name in before} == before
    real = importlib.util.find_spec("torchvision") is not None
    assert isinstance(script.torchvision, torch_side.stand_ins.StandIn) != real
    assert str(tmp_path) not in sys.path
    assert sorted(path.name for path in tmp_path.iterdir()) == ["beside.py", "run.py"]
    del sys.modules["beside"]
    (tmp_path / "run.py").write_text("import no_such_package\n")
    with pytest.raises(InputError, match=r"run.py cannot be imported \(No module named 'no_such_package'\)"):
        torch_side.checkout.load_script(tmp_path, "run.py")


def test_a_torchvision_that_does_not_go_with_pytorch(torch_side, tmp_path, monkeypatch):
    package = tmp_path / "torchvision" / "__init__.py"
    package.parent.mkdir()
    package.write_text("raise RuntimeError('operator torchvision::nms does not exist')\n")
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    with pytest.raises(
        InputError, match=r"torchvision cannot be imported \(operator torchvision::nms does not"
    ) as error:
        torch_side.checkout.load_script(tmp_path, "run.py")
    assert "\n" not in str(error.value)


def test_a_checkout_is_run_from_end_to_end(torch_side, tmp_path, monkeypatch, capsys):
    """One in MLC-PAT's form, written here, with the real torchvision where it is installed."""
    for name, text in CHECKOUT.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(subject, "PLAIN", ("resnet18",))
    flags = ["--model=resnet18", "--size=32", "--classes=3", "--batch=1", "--train-steps=0"]
    try:
        code = command.main([f"--reference={tmp_path}", *flags])
    finally:
        for name in [name for name in sys.modules if name.partition(".")[0] == "src_files"]:
            del sys.modules[name]
    captured = capsys.readouterr()
    assert code == 0, captured.err
    assert "10 of 10 stages agree" in captured.out


_SCRIPT = """
import argparse
import torchvision.transforms as transforms
from sklearn.metrics import average_precision_score
from inplace_abn import InPlaceABN
from src_files.models.factory import create_model
from src_files.utils.losses import AsymmetricLoss
from torch.cuda.amp import GradScaler, autocast
from torch.optim import lr_scheduler


def weighted_sum(batch, attention, score):
    attention = attention.view(-1, batch, attention.shape[1]).softmax(0)
    return (attention * score.view(-1, batch, score.shape[1])).sum(0)
"""
CHECKOUT = {
    "run_PAT-T.py": _SCRIPT,
    "run_asl.py": _SCRIPT,
    "src_files/models/factory.py": """
import torch
from timm.models.layers import DropPath
from torchvision import models


class Heads(torch.nn.Module):
    def __init__(self, d, k):
        super().__init__()
        self.fc1, self.fc2, self.fc3 = (torch.nn.Linear(d, k) for _ in range(3))

    def forward(self, x):
        return self.fc1(x), self.fc2(x), self.fc3(x)


def create_model(args):
    model = getattr(models, args.model_name)(pretrained=True)
    model.fc = Heads(model.fc.in_features, args.num_classes)
    return model.cuda()
""",
    "src_files/utils/losses.py": "class AsymmetricLoss: ...\n",
}
