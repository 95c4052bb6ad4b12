"""`--mode=plan`: what it prints, before any data is read; and that every recipe can be planned."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from cfmlc_jax import config as configs
from cfmlc_jax.classify import train
from cfmlc_jax.data import build, sizes
from cfmlc_jax.engine import flops
from cfmlc_jax.engine import mesh as meshes
from cfmlc_jax.engine.instruments import Instruments
from cfmlc_jax.engine.plan import TRAINING, Costs, Memory, Program, Workload
from cfmlc_jax.errors import InputError
from cfmlc_jax.planning import command as planning
from cfmlc_jax.planning import text, topology

REPOSITORY = Path(__file__).parents[2]
TESTED = Path(__file__).parents[1] / "configs"
TINY = f"--config={TESTED / 'tiny.py'}"
COCO = f"--config={REPOSITORY / 'configs' / 'coco.py'}"
# The recipe of COCO with the smallest model, to compile in seconds.
SMALL = (
    "--config.model.name=resnet_small",
    "--config.views.image_size=32",
    "--config.effect.kinds=('whole',)",
)
SHORT = {"train.batch_size": 8, "evaluate.batch_size": 8}


def loaded(path, variant=None):
    spec = importlib.util.spec_from_file_location("planned", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return configs.validate(module.get_config() if variant is None else module.get_config(variant))


def planned(path, *, devices=1, variant=None, **fields):
    config = configs.replaced(loaded(path, variant), fields)
    question = planning.Question(classes=7 if config.get("data", {}).get("source") == "table" else None)
    return planning._workload(config, question, jax.devices()[:devices])


def test_a_plan_reads_no_data_and_leaves_no_folder(command, tmp_path):
    code, out, err = command(COCO, *SMALL, "--mode=plan", "--images_per_second=100", "--out=plan.json")
    assert code == 0, err
    lines = out.splitlines()
    assert lines[0] == "parameters    resnet_small 332,720"
    assert lines[1] == "batch         128 images × 5 views of 32 px, 80 classes"
    assert lines[2] == "devices       8 cpu, mesh data 8 × fsdp 1"
    assert lines[3] == (
        "length        82,081 images are 641 steps; 80 epochs are 51,280 steps, 18.2 hours at 100 images/s"
    )
    assert [line.partition(" (")[0] for line in lines if not line.startswith("  ")][4:] == [
        "training step",
        "validation, 128 images",
        "evaluation, 128 images, TDE whole",
    ]
    (file,) = tmp_path.iterdir()
    plan = json.loads(file.read_text())
    step = plan["programs"][TRAINING]
    assert plan["steps"] == 51_280
    assert plan["hours"] == pytest.approx(51_280 * 128 / 100 / 3600)
    # Gradients and batch statistics are summed over the devices.
    assert step["collectives"]["all-reduce"]["count"] > 0
    assert step["collectives"]["all-reduce"]["bytes"] > 4 * plan["parameters"]["resnet_small"]
    # Evaluation needs no collective but that of its results.
    assert plan["programs"]["validation"]["collectives"].keys() <= {"all-gather"}
    memory = step["memory"]
    assert step["peak"] == memory["arguments"] + memory["outputs"] + memory["temporaries"] + memory["held"]
    # A state is parameters, two moments of Adam, and the average; statistics are small.
    assert memory["arguments"] == pytest.approx(4 * 4 * 332_720 + 16 * 5 * 32 * 32 * 3, rel=0.02)


@pytest.fixture
def compiled(monkeypatch):
    """Replaces compilation by a formula of the bytes that a program needs; the configurations that were "compiled"."""
    seen = []

    def workload(config, question, devices):
        seen.append(config)
        images = config.train.batch_size // config.train.micro_batches
        each = {"none": 100, "blocks": 50, "everything": 30}[config.model.remat]
        needs = {TRAINING: 1000 + each * images, "evaluation": 500 + 10 * config.evaluate.batch_size}
        return Workload(
            mesh=meshes.create(1, devices),
            batch="",
            parameters={},
            programs={name: Program(lambda: None, held=need) for name, need in needs.items()},
            images_per_step=1,
            images=None,
            steps_per_epoch=None,
            epochs=1,
        )

    def measured(program):
        return Costs(0, 0.0, Memory(0, 0, 0, program.held), {}, 0.0, False)

    monkeypatch.setattr(planning, "_workload", workload)
    monkeypatch.setattr(planning, "measure", measured)
    return seen


def fits(memory, **fields):
    """What fits into so many bytes, and the lines that say so."""
    lines = []
    question = planning.Question(plan_for="cpu:2", memory=memory)
    answer = planning.plan(configs.replaced(loaded(TESTED / "tiny.py"), fields), question, lines.append)
    return answer["fits"], lines


def test_micro_batches_that_fit(compiled):
    found, lines = fits(1500, **{"train.batch_size": 16, "model.norm_groups": 4})
    assert found == {TRAINING: {"train.micro_batches": 4, "memory": 1400}}
    assert lines[-4:] == [
        "training step: 2.54 KiB on each device does not fit into 1.46 KiB",
        "  train.micro_batches=4: 1.37 KiB",
        "training step: --config.train.micro_batches=4 fits, with 1.37 KiB",
        "evaluation: 660 B on each device fits into 1.46 KiB",
    ]
    assert len(compiled) == 2


def test_rematerialisation_comes_next_then_a_smaller_batch(compiled):
    """With 4 norm groups there are at most 4 micro-batches; with one group there are none."""
    groups = {"train.batch_size": 16, "model.norm_groups": 4}
    parts = {"model.remat": "blocks", "train.micro_batches": 4, "memory": 1200}
    assert fits(1390, **groups)[0] == {TRAINING: parts}
    assert fits(1250, **groups)[0] == {TRAINING: parts}
    joint = {"train.batch_size": 16, "model.norm_groups": 1}
    remat = {"model.remat": "everything", "train.micro_batches": 1, "memory": 1480}
    assert fits(1500, **joint)[0] == {TRAINING: remat}
    smaller = {"train.batch_size": 10, "model.remat": "everything", "memory": 1300}
    assert fits(1300, **joint)[0] == {TRAINING: smaller}
    assert fits(1300, **joint, **{"model.remat": "everything"})[0] == {
        TRAINING: {"train.batch_size": 10, "memory": 1300}
    }
    # From where the configuration is.
    assert fits(1300, **groups, **{"model.remat": "blocks"})[0][TRAINING]["train.micro_batches"] == 4


def test_a_program_that_the_compiler_refuses_is_too_large(compiled, monkeypatch):
    """The compiler for TPUs does not compile what its device cannot hold."""
    measured = planning.measure

    def refuse_large(program):
        if program.held > 2000:
            raise jax.errors.JaxRuntimeError(
                "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 2.54K of 2.00K hbm."
            )
        return measured(program)

    monkeypatch.setattr(planning, "measure", refuse_large)
    found, lines = fits(1500, **{"train.batch_size": 16, "model.norm_groups": 4})
    assert found == {TRAINING: {"train.micro_batches": 4, "memory": 1400}}
    assert lines[4].startswith("training step cannot be compiled: it needs ")
    assert len([line for line in lines if line.startswith("evaluation (compiled")]) == 1


def test_an_evaluation_that_fits(compiled):
    found, lines = fits(600, **{"evaluate.batch_size": 64})
    assert found["evaluation"] == {"evaluate.batch_size": 10, "memory": 600}
    assert found[TRAINING] is None
    assert any(line.startswith("training step: nothing fits; use more devices") for line in lines)


@pytest.mark.parametrize(
    ("images", "epochs", "words"),
    [
        (3500, 2, "3,500 images are 218 steps; 2 epochs are 436 steps"),
        (20, 1, "20 images are 1 step; 1 epoch is 1 step"),
        (None, 1, "1 epoch of unknown length; give --images=N, the number of training images"),
    ],
)
def test_the_length_of_a_run_in_words(images, epochs, words):
    workload = Workload(
        mesh=meshes.create(1, jax.devices()[:1]),
        batch="",
        parameters={},
        programs={},
        images_per_step=16,
        images=images,
        steps_per_epoch=None if images is None else images // 16,
        epochs=epochs,
    )
    assert text.head(workload, None)[-1] == f"length        {words}"


def test_the_steps_of_mixed_and_of_balanced_batches():
    scenes = REPOSITORY / "configs" / "scenes.py"
    assert planned(scenes).steps_per_epoch == 6000 // 16
    half = {"data.counterfactuals.path": "records", "data.counterfactuals.share": 0.5}
    assert planned(scenes, **half).steps_per_epoch == 6000 // 8
    digits = REPOSITORY / "configs" / "longtail_digits.py"
    # 1000 of the most common of ten classes.
    assert planned(digits, variant="lws").steps_per_epoch == 10 * 1000 // 64


@pytest.mark.parametrize("fsdp", [1, 2])
def test_the_plan_is_of_the_programs_that_a_run_compiles(fsdp, tmp_path, monkeypatch):
    """The same arguments, to the byte, as real arrays; and XLA's own count of operations."""
    fields = {"mesh.fsdp": fsdp} | SHORT
    workload = planned(TESTED / "tiny.py", devices=8, **fields)
    state = workload.programs[TRAINING].trace().args_info[0][0]
    config = configs.replaced(loaded(TESTED / "tiny.py"), fields)
    sources = train.build.open_sources(config, ("train", "val"), lambda _: None)
    training = train._Training(config, sources["train"], sources["val"])
    run = training.run(tmp_path, None, lambda _: None, Instruments())
    shapes = lambda tree: jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree)  # noqa: E731
    assert shapes(state) == shapes(run.abstract)
    batch = workload.programs[TRAINING].trace().args_info[0][1]
    first = next(iter(training._batches(0, print)))
    assert shapes(batch) == shapes({name: np.asarray(value) for name, value in first.items()})
    run.close()


def test_operations_agree_with_xla():
    program = planned(TESTED / "tiny.py").programs[TRAINING]
    counted_by_xla = program.trace().lower().cost_analysis()["flops"]
    # XLA also counts norms, losses and the optimiser.
    assert 0.75 < flops.count(program.trace().jaxpr) / counted_by_xla < 1


RECIPES = sorted(
    [*(REPOSITORY / "configs").glob("*.py"), *(REPOSITORY / "configs" / "reference").glob("*.py")]
)
# Those of the same networks are left out.
BUILT = (
    "coco",
    "tresnet_l",
    "q2l_tresnet_l_v2_in21k",
    "longtail_imagenet",
    "longtail_cifar",
    "cgn_mnist",
    "own_images",
    "longtail_lvis",
)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_data_of_every_recipe_has_a_known_size(path):
    config = loaded(path)
    if configs.system(config) in (configs.CGN_IMAGENET, configs.REGIONS):
        return  # the one has no data, and the other a number of classes by version
    if config.data.source in ("table", "open_images"):  # users choose images and classes
        assert sizes.known(config.data) is None
        return
    size = sizes.require(config.data)
    assert size.num_images >= config.train.batch_size
    assert size.num_classes >= 10


@pytest.mark.parametrize("path", [path for path in RECIPES if path.stem in BUILT], ids=lambda path: path.stem)
def test_recipes_have_abstract_states_and_batches(path):
    workload = planned(path)
    assert all(workload.parameters.values())
    assert workload.steps or path.stem == "own_images"
    assert TRAINING in workload.programs


def test_the_class_list_of_a_table(tmp_path):
    config = configs.replaced(loaded(REPOSITORY / "configs" / "own_images.py"), {"data.root": str(tmp_path)})
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert sizes.require(config.data) == sizes.Size(2, 0)
    assert sizes.require(config.data, images=90) == sizes.Size(2, 90)


def test_embedded_data_have_as_many_images_as_their_sources():
    for path in (TESTED / "tiny.py", TESTED / "cgn_tiny.py", REPOSITORY / "configs" / "longtail_digits.py"):
        data = loaded(path).data
        source = build.source(data, "train")
        assert sizes.require(data)[:2] == (len(source.class_names), len(source))


@pytest.mark.parametrize(
    ("file", "variant", "fields"),
    [
        ("cgn_digits.py", "smoke", {}),
        ("cgn_imagenet.py", "tiny", {}),
        ("cgn_imagenet_classifier.py", None, {"model.name": "resnet_small", "views.image_size": 32}),
        ("longtail_digits.py", "deconfound", {}),
        ("scenes.py", "exclusive", {}),
    ],
)
def test_training_steps_of_all_systems_can_be_traced(file, variant, fields):
    workload = planned(REPOSITORY / "configs" / file, variant=variant, **fields)
    for program in workload.programs.values():
        assert program.trace().jaxpr.eqns


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--config is missing"),
        (
            [f"--config={REPOSITORY / 'configs' / 'own_images.py'}"],
            "number of classes of data.source 'table'",
        ),
        ([TINY, "--memory=lots"], "--memory=lots is not a size of memory; give 24G"),
        ([TINY, "--images_per_second=0"], "--images_per_second=0.0 must be above 0"),
        ([TINY, "--classes=0"], "--classes=0"),
        ([TINY, "--plan_for=v5e"], "--plan_for=v5e is not of the form KIND:SHAPE; give v5e:4x4"),
        ([TINY, "--plan_for=cpu:9"], "asks for more CPU devices than the 8"),
        (
            [TINY, "--config.train.batch_size=200"],
            "train has 160 images, fewer than config.train.batch_size 200",
        ),
        ([TINY, "--plan_for=cpu:99999"], "is more than 4096 devices"),
        ([TINY, "--plan_for=cpu:8", "--config.train.batch_size=12"], "12 is not divisible by the 8 devices"),
        ([TINY, "--config.model.norm_groups=4", "--config.train.micro_batches=3"], "try 1, 2 or 4"),
    ],
)
def test_errors_are_one_line(command, tmp_path, arguments, words):
    code, _, err = command(*arguments, "--mode=plan")
    assert code == 1
    (line,) = err.splitlines()
    assert line.startswith("error: ")
    assert words in line
    assert list(tmp_path.iterdir()) == []


def test_flags_of_plans_are_refused_elsewhere(command):
    assert "error: --memory is for --mode=plan" in command(TINY, "--memory=24G")[2]


def test_tpus_need_a_wheel(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        InputError, match="--plan_for=v5e:4x4 needs the compiler for TPUs: pip install libtpu"
    ):
        topology.devices("v5e:4x4")


def test_cpu_devices_of_a_new_process(tmp_path):
    """More CPU devices than the machine has, on which fsdp splits the parameters."""
    clean = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    flags = (TINY, "--mode=plan", "--plan_for=cpu:4", "--config.mesh.fsdp=2")
    whole = ("--config.method=whole", "--config.effect.kinds=()")
    done = subprocess.run(
        [sys.executable, "-m", "cfmlc_jax.main", *flags, *whole],
        cwd=tmp_path,
        env=clean | {"PYTHONPATH": str(REPOSITORY), "XLA_FLAGS": "--xla_backend_optimization_level=0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("cfmlc_jax 0.1.0, loading JAX\n")
    assert "devices       4 cpu, mesh data 2 × fsdp 2" in done.stdout
    assert "all-gather of" in done.stdout
