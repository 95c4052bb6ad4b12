"""Mutants: the tests of a file, and the sample."""

import subprocess
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


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A committed package cfmlc_jax in the working folder: one module, one test of it, one of another module."""
    files = {
        "pyproject.toml": "[tool.pytest.ini_options]\nmarkers = ['slow: minutes']\nfilterwarnings = ['error']\n",
        "cfmlc_jax/__init__.py": "",
        "cfmlc_jax/causal/__init__.py": "",
        "cfmlc_jax/causal/effects.py": "SIZE = 4 // 2\n\n\ndef total(a):\n    return a + SIZE\n",
        "cfmlc_jax/causal/views.py": "",
        "tests/causal/test_effects.py": "from cfmlc_jax.causal import effects\n\n\n"
        "def test_total():\n    assert effects.total(1) == 3\n",
        "tests/causal/test_views.py": "import cfmlc_jax.causal.views\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    for command in (["init", "-q"], ["add", "."], [*identity, "commit", "-qm", "all"]):
        subprocess.run(["git", *command], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("before", "after", "code"),
    [
        ("SIZE\n", "SIZE * 1\n", 0),
        ("a + SIZE", "a - SIZE", 1),  # a test fails
        ("4 // 2", "4 // 0", 1),  # the module fails at import, so that no test is collected
    ],
)
def test_mutants_that_are_killed_or_survive(project, before, after, code):
    path = project / "cfmlc_jax" / "causal" / "effects.py"
    text = path.read_text()
    assert before in text
    path.write_text(text.replace(before, after))
    assert concerned.main([]) == code
    assert not concerned.ERRORS.exists()


def test_errors_are_written_and_do_not_kill(project):
    # Its test file has no test: pytest's exit code is 5.
    (project / "cfmlc_jax" / "causal" / "views.py").write_text("VIEWS = 5\n")
    assert concerned.main([]) == 0
    # A warning, which is an error in the tests alone: they are not collected, which is exit code 2.
    (project / "cfmlc_jax" / "causal" / "views.py").write_text("")
    path = project / "cfmlc_jax" / "causal" / "effects.py"
    path.write_text(path.read_text() + "\nimport warnings\nwarnings.warn('a')\n")
    assert concerned.main([]) == 0
    first, second = concerned.ERRORS.read_text().split("pytest's exit code ")[1:]
    assert first.startswith("5\n")
    assert "+VIEWS = 5" in first
    assert second.startswith("2\n")
    assert "+warnings.warn('a')" in second


def test_tests_of_unchanged_files(project, capfd):
    effects, views = "cfmlc_jax/causal/effects.py", "cfmlc_jax/causal/views.py"
    assert concerned.main([effects]) == 0
    assert concerned.main([effects, views]) == 1
    assert "exit code 5 without any mutant: tests/causal/test_views.py" in capfd.readouterr().err
    assert not concerned.ERRORS.exists()


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


def test_no_sample_of_files_whose_tests_fail(project):
    pytest.importorskip("cosmic_ray", reason="it has an environment of its own")
    from scripts.mutation.sample import tests_pass

    effects, views = Path("cfmlc_jax/causal/effects.py"), Path("cfmlc_jax/causal/views.py")
    assert tests_pass({effects})
    assert not tests_pass({effects, views})


def test_a_mutant_that_is_not_python_is_left_out(tmp_path):
    pytest.importorskip("cosmic_ray", reason="it has an environment of its own")
    from cosmic_ray.work_item import MutationSpec

    from scripts.mutation.sample import is_python

    path = tmp_path / "a.py"
    path.write_text("def f(*, a):\n    return a * 2\n")
    name = "core/ReplaceBinaryOperator_Mul_Add"
    kinds = [is_python(MutationSpec(path, name, place, (1, 0), (1, 1))) for place in range(2)]
    assert kinds == [False, True]
