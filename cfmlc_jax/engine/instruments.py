"""What observes a run, and changes none of its numbers: the metric writers and the profiler."""

from dataclasses import dataclass, field
from pathlib import Path

import jax

from cfmlc_jax.engine import profile as profiling
from cfmlc_jax.engine.progress import Progress
from cfmlc_jax.engine.reporting import Reporting


@dataclass(frozen=True)
class Instruments:
    """What observes a run, and changes none of its numbers.

    reporting: the metric writers.
    profile: the steps of which a trace is written; None: none.
    """

    reporting: Reporting = field(default_factory=Reporting)
    profile: profiling.Steps | None = None

    def profiler(self, workdir: Path, *, done: int, total: int, progress: Progress) -> profiling.Profiler:
        """The profiler of the run on this process: the first traces, the others do not.

        The arguments are those of `profile.Profiler`; its folder is in the workdir.
        """
        steps = self.profile if jax.process_index() == 0 else None
        folder = workdir / profiling.FOLDER
        return profiling.Profiler(steps, folder, done=done, total=total, progress=progress)
