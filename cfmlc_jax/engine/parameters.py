"""The table of parameters that a run writes at its start: name, shape, type and size of each."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
from clu import parameter_overview
from flax.traverse_util import flatten_dict, unflatten_dict

from cfmlc_jax import files

FILE = "parameters.txt"


class Network(NamedTuple):
    """A network of a run.

    name: for the user.
    params: its parameters, a nested dict of arrays or of their shapes.
    trained: which of them are trained: a tree of booleans like `params`, or one for all.
    """

    name: str
    params: dict[str, Any]
    trained: Any = True


def summary(network: Network) -> str:
    """How many parameters a network has, in one line: "resnet18: 11,181,642 parameters, 5,130 trained, 44.7 MB"."""
    number = parameter_overview.count_parameters(network.params)
    trained = parameter_overview.count_parameters(_parts(network)["trained"])
    size = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(network.params))
    share = "" if trained == number else f", {trained:,} trained"
    return f"{network.name}: {number:,} parameters{share}, {size / 1e6:,.1f} MB"


def write(workdir: Path, networks: Sequence[Network]) -> list[str]:
    """The `summary` of each network; the first process writes the whole tables to parameters.txt in the workdir.

    Raises:
        WriteError: the file cannot be written.
    """
    summaries = [summary(network) for network in networks]
    if jax.process_index() == 0:
        tables = [f"{line}\n{_table(network)}" for line, network in zip(summaries, networks)]
        files.write_text(workdir / FILE, "\n".join(tables))
    return [*summaries[:-1], f"{summaries[-1]} ({FILE} lists them)"]


def _table(network):
    """The trained parameters, and below them the frozen ones."""
    tables = {
        title: parameter_overview.get_parameter_overview(params, include_stats=False)
        for title, params in _parts(network).items()
        if params
    }
    return "".join(f"\n{title}\n{table}\n" for title, table in tables.items())


def _parts(network):
    """{"trained": nested parameters, "frozen": the others}."""
    params = flatten_dict(network.params)
    trained = flatten_dict(network.trained) if isinstance(network.trained, dict) else None

    def those(wanted):
        is_trained = lambda path: network.trained if trained is None else trained[path]  # noqa: E731
        return unflatten_dict({path: leaf for path, leaf in params.items() if is_trained(path) == wanted})

    return {"trained": those(True), "frozen": those(False)}
