"""Keep a random sample of the mutants of a Cosmic Ray session: same seed, same mutants in the same order.

Unions of types (`int | None`) are left out: every change of one is an error at import, which says nothing about tests.
"""

import argparse
import random

from cosmic_ray.tools.filters.filter_app import FilterApp
from cosmic_ray.work_db import WorkDB
from cosmic_ray.work_item import MutationSpec, WorkItem

NOT_MUTATED = "ReplaceBinaryOperator_BitOr_"


def sampled(mutations: list[MutationSpec], number: int, seed: int) -> list[WorkItem]:
    """So many of the mutations in random order, whatever their order was."""
    order = sorted(mutations, key=lambda one: (str(one.module_path), one.operator_name, one.occurrence))
    random.Random(seed).shuffle(order)
    return [WorkItem.single(f"{place:05}", mutation) for place, mutation in enumerate(order[:number])]


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
        work_db.clear()
        work_db.add_work_items(sampled(kept, args.number, args.seed))
        print(f"{min(args.number, len(kept))} of {len(kept)} mutants")


if __name__ == "__main__":
    Sample().main()
