"""When the processes of a run end, after one of them got SIGTERM: all at the same call of `CommonEnd.reached`.

JAX can agree on that as well (`multihost_utils.reached_preemption_sync_point`), but it waits with Python's interpreter
lock held. The relay of `processes`, through which its messages go, needs that lock: all processes would wait forever.
"""

import contextlib
import signal
import threading
from typing import Any

import jax

LOOK_SECONDS = 1.0  # between two looks for a request that another process got
EXCHANGE_SECONDS = 0.1  # the same after a request, until all have published their calls
_CALLS = "cfmlc_jax/calls/"


class CommonEnd:
    """The call of `reached` at which all processes of a run end.

    After a SIGTERM each process publishes how often it has called `reached`, and holds its next call until all have
    published. The end is the call after the highest of these numbers, which no process has made yet. A thread looks
    for requests and publishes: so a process answers while it computes or waits for another one, and a call costs no
    message.
    """

    def __init__(self):
        self._calls = 0
        self._end: int | None = None
        self._signalled = self._held = False
        self._changed = threading.Condition()
        self._closed = threading.Event()

    def watch(self, client: Any, number: int, count: int) -> None:
        """Catch SIGTERM from now on. Called in the main thread, to which Python gives signals.

        Args:
            client: of JAX's key-value store.
            number: of this process, from 0.
            count: of the processes.
        """
        signal.signal(signal.SIGTERM, self._on_signal)
        threading.Thread(target=self._agree, args=[client, number, count], daemon=True).start()

    def reached(self) -> bool:
        """Whether this process must end now. All processes call it equally often."""
        with self._changed:
            self._changed.wait_for(lambda: self._end is not None or not (self._signalled or self._held))
            self._calls += 1
            return self._end is not None and self._calls >= self._end

    def close(self) -> None:
        """Look for no further requests: the processes are about to disconnect."""
        self._closed.set()

    def _on_signal(self, *_):
        self._signalled = True

    def _agree(self, client, number, count):
        while self._end is None and not self._closed.wait(EXCHANGE_SECONDS if self._held else LOOK_SECONDS):
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # `processes` notices if process 0 is gone
                self._exchange(client, number, count)

    def _exchange(self, client, number, count):
        published = [int(calls) for _, calls in client.key_value_dir_get(_CALLS)]
        if not published and not self._signalled:
            return
        with self._changed:
            self._held = True
        client.key_value_set(f"{_CALLS}{number}", str(self._calls), allow_overwrite=True)
        if len(published) == count:
            with self._changed:
                self._end = max(published) + 1
                self._changed.notify_all()


# Of this process: the stages of a run count on.
common_end = CommonEnd()
