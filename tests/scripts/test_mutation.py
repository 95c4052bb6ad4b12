"""Mutants: the tests of a file, and the sample."""

import tomllib
from pathlib import Path

import pytest

from scripts.mutation import concerned

ROOT = Path(__file__).parents[2]


def concerned_by(file):
    assert (ROOT / file).is_file()
    return {
        path.relative_to(ROOT / "tests").as_posix() for path in concerned.tests_of(Path(file), ROOT / "tests")
    }


def test_the_tests_of_a_file():
    # Those of its room that import it, from the package or by its own name; the one of its name.
    assert {"causal/test_effects.py", "causal/test_patches.py"} <= concerned_by("cfmlc_jax/causal/effects.py")
    assert "engine/test_run.py" in concerned_by("cfmlc_jax/engine/run.py")
    assert concerned_by("cfmlc_jax/losses/asymmetric.py") == {"losses/test_asymmetric.py"}
    # Those elsewhere; all of its room.
    elsewhere = concerned_by("cfmlc_jax/causal/mean_feature.py")
    assert elsewhere
    assert {path.split("/")[0] for path in elsewhere} == {"models"}
    assert concerned_by("cfmlc_jax/losses/catalogue.py") == {
        path.relative_to(ROOT / "tests").as_posix() for path in (ROOT / "tests" / "losses").glob("test_*.py")
    }


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("from cfmlc_jax.causal.effects import total", True),
        ("from cfmlc_jax.causal import effects as e, views", True),
        ("from cfmlc_jax.causal import (\n    views,\n    effects,\n)", True),
        ("import cfmlc_jax.causal.effects", True),
        ("from cfmlc_jax.causal import side_effects", False),
        ("from cfmlc_jax.causal import views  # no effects\neffects = 1", False),
        ("from cfmlc_jax.report import effects", False),
    ],
)
def test_what_imports_a_module(text, answer):
    assert concerned.imports(text, "causal.effects") == answer


def test_the_configuration():
    config = tomllib.loads((ROOT / "scripts" / "mutation" / "cosmic-ray.toml").read_text())["cosmic-ray"]
    assert all((ROOT / path).is_dir() for path in config["module-path"])
    command, script = config["test-command"].split()
    assert command == "python"
    assert (ROOT / script).is_file()


def test_a_sample_is_the_same_for_a_seed():
    pytest.importorskip("cosmic_ray", reason="it has an environment of its own")
    from cosmic_ray.work_item import MutationSpec

    from scripts.mutation.sample import sampled

    mutations = [MutationSpec("a.py", "core/NumberReplacer", place, (1, 0), (1, 1)) for place in range(9)]

    def accept(mutation):
        return mutation.occurrence != 5

    first = sampled(mutations, 4, 0, accept)
    assert first == sampled(mutations[::-1], 4, 0, accept) != sampled(mutations, 4, 1, accept)
    assert len({item.mutations[0].occurrence for item in first}) == 4
    every = sampled(mutations, 99, 0, accept)
    assert sorted(item.mutations[0].occurrence for item in every) == [0, 1, 2, 3, 4, 6, 7, 8]
    assert [item.job_id for item in every] == [f"{place:05}" for place in range(8)]


def test_a_mutant_that_is_not_python_is_left_out(tmp_path):
    pytest.importorskip("cosmic_ray", reason="it has an environment of its own")
    from cosmic_ray.work_item import MutationSpec

    from scripts.mutation.sample import is_python

    path = tmp_path / "a.py"
    path.write_text("def f(*, a):\n    return a * 2\n")
    name = "core/ReplaceBinaryOperator_Mul_Add"
    kinds = [is_python(MutationSpec(path, name, place, (1, 0), (1, 1))) for place in range(2)]
    assert kinds == [False, True]
