"""The test command of Cosmic Ray: runs the tests that concern the files which differ from the last commit.

    python scripts/mutation/concerned.py              # exit code 1: the mutant is killed; 0: it is not
    python scripts/mutation/concerned.py FILE …       # tests of unchanged files; exit code 1: some do not pass

A file's tests are those of its own room that import its module or are named after it; else those elsewhere that import it;
else all tests of its room. The first failure ends them. Tests that are marked `slow` are left out.

Cosmic Ray takes every exit code but 0 for a killed mutant. A mutant is killed here if a test fails, or if its module cannot
be imported any more. Any other end of pytest (tests that cannot be collected, none found, a crash) is no answer: it is
written to `ERRORS` with the mutant's diff, and the mutant counts as a survivor until somebody has looked at it.
"""

import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

PACKAGE = "cfmlc_jax"
ERRORS = Path("mutant_errors.txt")
PASSED, FAILED = 0, 1  # pytest's exit codes that are answers


def imports(text: str, module: str) -> bool:
    """Whether a test file's text imports a module, such as "causal.effects", or something from it."""
    package, _, name = f"{PACKAGE}.{module}".rpartition(".")
    whole, room = re.escape(f"{package}.{name}"), re.escape(package)
    names = rf"from {room} import (?:\([^)]*|[^\n(#]*)\b{name}\b"
    return re.search(rf"\b{whole}\b|{names}", text) is not None


def module_of(file: Path) -> str:
    """The name within the package: cfmlc_jax/causal/effects.py -> "causal.effects"."""
    return ".".join(file.with_suffix("").parts[1:]).removesuffix(".__init__")


def tests_of(file: Path, tests: Path) -> list[Path]:
    """The test files below `tests` that concern a file of the package, such as cfmlc_jax/causal/effects.py."""
    module = module_of(file)
    room, name = tests / file.parts[1], f"test_{file.stem}.py"
    every = sorted(tests.rglob("test_*.py"))
    own = [path for path in every if path.is_relative_to(room)]
    concerned = {path for path in every if imports(path.read_text(encoding="utf-8"), module)}
    nearest = [path for path in own if path in concerned or path.name == name]
    elsewhere = [path for path in every if path in concerned and not path.is_relative_to(tests / "parity")]
    return nearest or elsewhere or own


def run(tests: Sequence[Path]) -> int:
    """pytest's exit code for these test files."""
    options = ["-x", "-q", "-n", "0", "-m", "not slow", "-p", "no:cacheprovider"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *map(str, tests)], check=False
    ).returncode


def git_diff(*options: str) -> str:
    """The package's differences from the last commit."""
    command = ["git", "diff", *options, "HEAD", "--", PACKAGE]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def can_import(file: Path) -> bool:
    """Whether a file of the package can be imported, in a process of its own."""
    statement = f"import {PACKAGE}.{module_of(file)}"
    return subprocess.run([sys.executable, "-c", statement], check=False).returncode == 0


def check_mutant() -> int:
    """1 if the changed files are a mutant that is killed, else 0."""
    files = [Path(line) for line in git_diff("--name-only").splitlines()]
    code = run([*dict.fromkeys(path for file in files for path in tests_of(file, Path("tests")))])
    if code in (PASSED, FAILED):
        return code
    if not all(map(can_import, files)):
        return FAILED
    with ERRORS.open("a", encoding="utf-8") as file:
        file.write(f"pytest's exit code {code}\n{git_diff('-U0')}\n")
    return PASSED


def check_unchanged(files: Sequence[Path]) -> int:
    """0 if the tests of all these files pass as the files are, else 1."""
    for tests in dict.fromkeys(tuple(tests_of(file, Path("tests"))) for file in files):
        code = run(tests)
        if code != PASSED:
            names = ", ".join(map(str, tests))
            print(f"pytest's exit code {code} without any mutant: {names}", file=sys.stderr)
            return 1
    return 0


def main(arguments: Sequence[str]) -> int:
    """Run the command and return the exit code."""
    return check_unchanged([Path(name) for name in arguments]) if arguments else check_mutant()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
