"""What the project uses of MLflow, without a network: calls are kept in `runs`, by the run's id."""

import itertools
from types import SimpleNamespace

runs: dict[str, list] = {}
down: Exception | None = None
_numbers = itertools.count(1)
_experiments: dict[str, str] = {}


def reset():
    global down
    runs.clear()
    _experiments.clear()
    down = None


def get_tracking_uri():
    return "file:fake"


class MlflowClient:
    def get_experiment_by_name(self, name):
        _answer()
        return SimpleNamespace(experiment_id=_experiments[name]) if name in _experiments else None

    def create_experiment(self, name):
        _experiments[name] = f"experiment {len(_experiments)}"
        return _experiments[name]

    def create_run(self, experiment_id, *, tags, run_name):
        id = f"run{next(_numbers)}"
        runs[id] = [("create", (experiment_id, tags, run_name))]
        return SimpleNamespace(info=SimpleNamespace(run_id=id))

    def update_run(self, run_id, status):
        self._keep(run_id, "status", status)

    def log_batch(self, run_id, metrics=(), params=()):
        assert len(params) <= 100
        assert len(metrics) <= 1000
        if params:
            self._keep(run_id, "params", dict(params))
        if metrics:
            self._keep(run_id, "metrics", [(name, value, step) for name, value, _, step in metrics])

    def log_image(self, run_id, image, *, key, step):
        self._keep(run_id, "image", (key, image.shape, step))

    def log_artifact(self, run_id, path, folder):
        self._keep(run_id, "artifact", (path, folder))

    def set_terminated(self, run_id, status):
        self._keep(run_id, "status", status)

    def _keep(self, run_id, kind, content):
        _answer()
        runs[run_id].append((kind, content))


def _answer():
    if down is not None:
        raise down
