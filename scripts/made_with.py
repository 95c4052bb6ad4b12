"""The flags that a folder of results was made with: results of others are not taken for those that are asked for."""

from collections.abc import Sequence
from pathlib import Path

from cfmlc_jax import files
from cfmlc_jax.errors import InputError

FILE = "made_with.txt"


def require_same(folder: Path, flags: Sequence[str]) -> None:
    """Write the flags into a folder that has no results yet; raise unless those of a folder with results are the same.

    Raises:
        InputError: the folder has results of other flags, or does not say of which.
    """
    file, text = folder / FILE, "".join(f"{flag}\n" for flag in flags)
    way_out = "remove it to make it anew, or give another --workdir"
    if {path.name for path in folder.glob("*")} <= {FILE}:
        files.create_folder(folder, "--workdir")
        files.write_text(file, text)
    elif not file.exists():
        raise InputError(f"{folder} has files, but no {FILE} that says of which flags; {way_out}")
    elif (stored := file.read_text(encoding="utf-8")) != text:
        made, wanted = (" ".join(each.split("\n")[:-1]) or "no flags" for each in (stored, text))
        raise InputError(f"{folder} was made with {made}, not with {wanted}; {way_out}")
