"""The order of the rooms: a file imports only from its own room and those above.

A room's `__main__` is a command: it may import from every room, and nothing imports it.
"""

import ast
import re
from pathlib import Path

import cfmlc_jax

PACKAGE = Path(cfmlc_jax.__file__).parent
ROOMS = (
    "errors", "shapes", "installed", "commands", "cli", "buckets", "files", "digests", "lock", "clusters", "ending", "processes", "causal", "losses", "optim", "metrics", "models", "data",
    "weights_folder", "checkpoint", "engine", "torch_weights", "weights", "api", "config", "results", "classify", "cgn", "regions", "planning", "context", "report", "check", "main", "predict",
    "export", "decisions",
)  # fmt: skip
# Pure functions: arrays in, arrays out.
PURE = ("causal", "losses", "metrics", "optim", "models")


def room_of(module):
    return module.split(".")[1]


def order(path, room):
    return len(ROOMS) if path.name == "__main__.py" else ROOMS.index(room)


def imports(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        yield from names


def files():
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if parts != ("__init__",):
            yield path, parts[0]


def test_every_room_is_known():
    assert {room for _, room in files()} == set(ROOMS)


def test_the_document_lists_the_rooms():
    text = (PACKAGE.parent / "docs" / "fork.md").read_text(encoding="utf-8")
    (listed,) = re.findall(r"^`errors`.*?\.$", text, re.S | re.M)
    assert tuple(re.findall(r"`(\w+)`", listed)) == ROOMS


def test_imports_point_one_way():
    upward = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path, room in files()
        for name in imports(path)
        if name.startswith("cfmlc_jax.") and ROOMS.index(room_of(name)) > order(path, room)
    ]
    assert upward == []


def test_commands_are_not_imported():
    imported = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path, _ in files()
        for name in imports(path)
        if name.startswith("cfmlc_jax.") and "__main__" in name.split(".")
    ]
    assert imported == []


def test_pure_rooms_have_no_effects():
    effects = {"logging", "sys", "pathlib", "time", "orbax", "grain", "ml_collections", "absl"}
    impure = [
        f"{path.relative_to(PACKAGE)} imports {name}"
        for path, room in files()
        if room in PURE
        for name in imports(path)
        if name.split(".")[0] in effects
    ]
    assert impure == []


def test_no_file_is_trusted_with_code():
    """Foreign files are read by readers that run nothing; docs/security.md says which."""
    forbidden = {
        "pickle.load", "pickle.loads", "eval", "exec", "compile", "os.system", "os.popen", "yaml.load", "np.load",
        "marshal.loads", "shelve.open", "tarfile.extractall", "shutil.unpack_archive",
    }  # fmt: skip
    # Assets of the package itself.
    allowed = {("data/sources/embedded.py", "np.load")}
    calls = []
    for path, _ in files():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func)
                place = path.relative_to(PACKAGE).as_posix()
                unsafe = {"allow_pickle", "shell", "weights_only"} & {
                    keyword.arg
                    for keyword in node.keywords
                    if isinstance(keyword.value, ast.Constant)
                    and keyword.value.value is (keyword.arg != "weights_only")
                }
                extracts = name.endswith((".extract", ".extractall"))
                if unsafe or extracts or (name in forbidden and (place, name) not in allowed):
                    calls.append(f"{place}: {name}")
                if name == "torch.load":
                    assert "weights_only" in {keyword.arg for keyword in node.keywords}
    assert calls == []
