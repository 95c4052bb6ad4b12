"""The test command of Cosmic Ray: runs the tests that concern the files which differ from the last commit.

A file's tests are those of its own room that import its module or are named after it; else those elsewhere that import it;
else all tests of its room. The first failure ends them. Tests that are marked `slow` are left out.
"""

import re
import subprocess
import sys
from pathlib import Path

PACKAGE = "cfmlc_jax"


def imports(text: str, module: str) -> bool:
    """Whether a test file's text imports a module, such as "causal.effects", or something from it."""
    package, _, name = f"{PACKAGE}.{module}".rpartition(".")
    whole, room = re.escape(f"{package}.{name}"), re.escape(package)
    names = rf"from {room} import (?:\([^)]*|[^\n(#]*)\b{name}\b"
    return re.search(rf"\b{whole}\b|{names}", text) is not None


def tests_of(file: Path, tests: Path) -> list[Path]:
    """The test files below `tests` that concern a file of the package, such as cfmlc_jax/causal/effects.py."""
    module = ".".join(file.with_suffix("").parts[1:]).removesuffix(".__init__")
    room, name = tests / file.parts[1], f"test_{file.stem}.py"
    every = sorted(tests.rglob("test_*.py"))
    own = [path for path in every if path.is_relative_to(room)]
    concerned = {path for path in every if imports(path.read_text(encoding="utf-8"), module)}
    nearest = [path for path in own if path in concerned or path.name == name]
    elsewhere = [path for path in every if path in concerned and not path.is_relative_to(tests / "parity")]
    return nearest or elsewhere or own


def main() -> int:
    """Run the concerned tests; the exit code is pytest's."""
    changed = subprocess.run(
        ["git", "diff", "--name-only", "HEAD", "--", PACKAGE], check=True, capture_output=True, text=True
    )
    files = [Path(line) for line in changed.stdout.splitlines()]
    tests = dict.fromkeys(path for file in files for path in tests_of(file, Path("tests")))
    options = ["-x", "-q", "-n", "0", "-m", "not slow", "-p", "no:cacheprovider"]
    return subprocess.run(
        [sys.executable, "-m", "pytest", *options, *map(str, tests)], check=False
    ).returncode


if __name__ == "__main__":
    sys.exit(main())
