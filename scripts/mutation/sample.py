"""Keep a random sample of the mutants of a Cosmic Ray session: same seed, same mutants in the same order.

Unions of types (`int | None`) are left out: every change of one is an error at import, which says nothing about tests.
First the tests of the sampled files run without any mutant; the session is left as it is if some do not pass.
"""

import argparse
import ast
import itertools
import random
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator
from cosmic_ray.tools.filters.filter_app import FilterApp
from cosmic_ray.work_db import WorkDB
from cosmic_ray.work_item import MutationSpec, WorkItem

NOT_MUTATED = "ReplaceBinaryOperator_BitOr_"


def sampled(
    mutations: list[MutationSpec], number: int, seed: int, accept: Callable[[MutationSpec], bool]
) -> list[WorkItem]:
    """So many of the mutations that are accepted, in random order, whatever their order was."""
    order = sorted(mutations, key=lambda one: (str(one.module_path), one.operator_name, one.occurrence))
    random.Random(seed).shuffle(order)
    chosen = itertools.islice(filter(accept, order), number)
    return [WorkItem.single(f"{place:05}", mutation) for place, mutation in enumerate(chosen)]


def is_python(mutation: MutationSpec) -> bool:
    """Whether the mutated file is Python: the star of a signature is no operator, but is changed like one."""
    operator = get_operator(mutation.operator_name)(**mutation.operator_args)
    source = mutation.module_path.read_text(encoding="utf-8")
    try:
        ast.parse(mutate_code(source, operator, mutation.occurrence))
    except SyntaxError:
        return False
    return True


def tests_pass(files: Iterable[Path]) -> bool:
    """Whether the tests of these files pass without any mutant, in the project's environment: `python` in the path."""
    script = Path(__file__).with_name("concerned.py")
    return subprocess.run(["python", str(script), *sorted(map(str, files))], check=False).returncode == 0


class Sample(FilterApp):
    """The command."""

    def description(self) -> str:
        """What --help prints."""
        return str(__doc__)

    def add_args(self, parser: argparse.ArgumentParser) -> None:
        """The flags, beside the session."""
        parser.add_argument("--number", type=int, default=120, help="how many mutants to keep")
        parser.add_argument("--seed", type=int, default=0, help="of the choice")

    def filter(self, work_db: WorkDB, args: argparse.Namespace) -> None:
        """Replace all work of the session by the sample."""
        mutations = [mutation for item in work_db.work_items for mutation in item.mutations]
        kept = [mutation for mutation in mutations if NOT_MUTATED not in mutation.operator_name]
        items = sampled(kept, args.number, args.seed, is_python)
        if not tests_pass({mutation.module_path for item in items for mutation in item.mutations}):
            sys.exit("error: tests fail without any mutant; repair them first")
        work_db.clear()
        work_db.add_work_items(items)
        print(f"{min(args.number, len(kept))} of {len(kept)} mutants")


if __name__ == "__main__":
    Sample().main()
