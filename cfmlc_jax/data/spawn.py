"""Starts worker processes: one that dies while it starts does not keep this process waiting."""

import contextlib
import io
import os
from multiprocessing import context, popen_spawn_posix, reduction, resource_tracker, spawn, util
from typing import Any

_util: Any = util  # its types lack what is used here


class Popen(popen_spawn_posix.Popen):
    """A process that Python starts anew, described through a pipe.

    Python's class keeps the end open from which the process reads, so that the write of a description of more than
    64 kB never ends if the process has died, for example because memory is full. Here this end is closed: the write
    ends, and the exit code says the rest.
    """

    _fds: list[int]  # inherited by the process

    def _launch(self, process_obj):
        tracker = resource_tracker.getfd()
        description = io.BytesIO()
        context.set_spawning_popen(self)  # what is dumped may add to `_fds`
        try:
            reduction.dump(spawn.get_preparation_data(process_obj.name), description)
            reduction.dump(process_obj, description)
        finally:
            context.set_spawning_popen(None)
        self.sentinel, writes = os.pipe()  # open as long as the process is alive
        reads, to_process = os.pipe()
        self.finalizer = _util.Finalize(self, _util.close_fds, [self.sentinel, to_process])
        try:
            command = spawn.get_command_line(tracker_fd=tracker, pipe_handle=reads)
            inherited = [*self._fds, tracker, reads, writes]
            self.pid = _util.spawnv_passfds(spawn.get_executable(), command, inherited)
        finally:
            os.close(reads)
            os.close(writes)
        with contextlib.suppress(BrokenPipeError), open(to_process, "wb", closefd=False) as pipe:
            pipe.write(description.getbuffer())


def install() -> None:
    """Let all processes that this one starts with the method "spawn" be started so."""
    popen_spawn_posix.Popen = Popen  # type: ignore[misc]
