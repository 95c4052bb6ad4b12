"""What the project uses of W&B, without a network: calls are kept in `runs`, by the run's id.

`down` is the exception that every call raises; `hanging` makes every call wait until it is set.
"""

import threading
from types import SimpleNamespace

runs: dict[str, list] = {}
down: Exception | None = None
hanging = threading.Event()


def reset():
    global down
    runs.clear()
    down = None
    hanging.set()


class Error(Exception):
    pass


def setup():
    return SimpleNamespace(settings=SimpleNamespace(mode="offline"))


class Settings:
    def __init__(self, **fields):
        assert fields["silent"]
        assert fields["reinit"] == "create_new"
        self.sync_dir = "wandb/offline-run-1-x"


def init(*, id, settings, **options):
    _answer()
    runs.setdefault(id, []).append(("init", options))
    return Run(id, settings)


class Run:
    offline = True

    def __init__(self, id, settings):
        self.id, self.settings = id, settings
        self.summary = self

    def define_metric(self, name, step_metric):
        assert name.endswith("/*")
        assert step_metric == "step"

    def log(self, row):
        self._keep("log", row)

    def update(self, results):
        self._keep("summary", results)

    def mark_preempting(self):
        self._keep("preempting", None)

    def finish(self, exit_code):
        self._keep("finish", exit_code)

    def _keep(self, kind, content):
        _answer()
        runs[self.id].append((kind, content))


def Image(array):
    return ("image", array.shape)


def Html(path, inject):
    return ("page", path)


def _answer():
    hanging.wait()
    if down is not None:
        raise down
