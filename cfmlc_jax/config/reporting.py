"""The metric writers of a run, from section `report` of its configuration."""

from collections.abc import Callable
from typing import Any

from cfmlc_jax import config as configs
from cfmlc_jax.engine.reporting import Reporting
from cfmlc_jax.engine.trackers import Label


def reporting(config: Any, print_line: Callable[[str], None]) -> Reporting:
    """The metric writers that a configuration asks for, not open yet."""
    report = config.report
    return Reporting(
        tuple(report.writers),
        label=Label(report.project, report.name, report.group, tuple(report.tags)),
        hparams=configs.flat(configs.to_json(config)),
        config=config,
        print_line=print_line,
    )
