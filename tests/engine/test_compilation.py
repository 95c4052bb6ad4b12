"""Compiled programs outlive their process."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp

from cfmlc_jax.engine import compilation

WHOLE = ("--config.method=whole", "--config.effect.kinds=('whole',)")
FEW = ("--config.data.scenes.num_train=32", "--config.data.scenes.num_test=16")
PROGRAM = """
import jax, sys
from cfmlc_jax.engine import compilation
compilation.LEAST_SECONDS = 0
compilation.keep(sys.argv[1] if len(sys.argv) > 1 else None)
with compilation.counted() as compilations:
    jax.jit(lambda x: x @ x)(jax.numpy.ones((8, 8)))
print(compilations.all.total(), compilations.loaded.total())
"""


def run(*arguments, **variables):
    """The number of programs of a new process, and how many of them it had not to compile."""
    clean = {name: value for name, value in os.environ.items() if name != compilation.VARIABLE}
    environment = clean | {"PYTHONPATH": str(Path(__file__).parents[2])} | variables
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return *(int(word) for word in done.stdout.split()), done.stderr


def test_a_second_process_compiles_nothing(tmp_path):
    cache = {"XDG_CACHE_HOME": str(tmp_path)}
    first, second = run(**cache), run(**cache)
    assert first[0] == second[0] > 0
    assert (first[1], second[1]) == (0, second[0])
    (folder,) = (tmp_path / "cfmlc_jax" / "xla").iterdir()
    assert any("lambda" in path.name for path in folder.iterdir())
    # In a folder of the user's choice there is nothing yet.
    assert run(str(tmp_path / "mine"), **cache)[1] == 0


def test_the_variable_of_jax_is_respected_and_none_keeps_nothing(tmp_path):
    variables = {"XDG_CACHE_HOME": str(tmp_path / "cache"), compilation.VARIABLE: str(tmp_path / "jax")}
    every = variables | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    run(**every)
    assert list((tmp_path / "jax").iterdir())
    assert run("none", **every)[1] == 0
    assert not (tmp_path / "cache").exists()


def test_a_folder_that_cannot_be_written_is_a_warning(tmp_path):
    (tmp_path / "file").write_text("")
    programs, loaded, err = run(str(tmp_path / "file"))
    assert programs
    assert not loaded
    (line,) = err.splitlines()
    assert line.startswith(f"warning: compiled programs are not kept: {tmp_path / 'file'} cannot be written")
    assert "--compilation_cache=FOLDER, or none" in line


def test_programs_are_counted_by_name():
    def doubled(x):
        return 2 * x

    jitted = jax.jit(doubled)
    with compilation.counted() as compilations:
        for shape in (3, 3, 4):
            jitted(jnp.zeros(shape))
    jitted(jnp.zeros(5))
    assert compilations.all["jit(doubled)"] == 2


def test_a_run_compiles_each_program_once(command):
    """Training, two validations, and an evaluation of two splits, which differs in its counterfactuals."""
    tiny = Path(__file__).parents[1] / "configs" / "tiny.py"
    with compilation.counted() as compilations:
        code, _, err = command(f"--config={tiny}", "--config.train.epochs=2", *WHOLE, *FEW)
    assert code == 0, err
    # Orbax cuts replicated arrays into a part for each device, one small program for each shape and part.
    del compilations.all["jit(slice)"]
    assert {name: number for name, number in compilations.all.items() if number > 1} == {"jit(score)": 2}
    assert compilations.all["jit(initial_state)"] == compilations.all["jit(step)"] == 1
