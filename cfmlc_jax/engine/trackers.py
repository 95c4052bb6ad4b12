"""Experiment trackers as metric writers: Weights & Biases, and MLflow.

Every call reaches a package that may use the network: a run makes them by a `follower.Follower`, in another thread.
"""

import logging
import os
import secrets
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cfmlc_jax.buckets import Address

DEFAULT_PROJECT = "cfmlc_jax"
# How a run ended. PREEMPTED: it is saved, and will be resumed.
FINISHED, PREEMPTED, FAILED = "finished", "preempted", "failed"
# Files of a report that a tracker keeps.
REPORT_FILES = ("index.html", "results.md", "results.json", "mechanisms.json")
# Seconds after which an attempt to reach W&B ends, and one request to MLflow.
CONNECT_SECONDS, REQUEST_SECONDS = 30, 20
# Seconds in which a server must answer at all.
ANSWER_SECONDS = 10
# The most parameters and metrics that MLflow takes in one request.
_PARAMS, _METRICS = 100, 1000


class Label(NamedTuple):
    """How trackers name a run; an empty value is the tracker's default.

    project: of W&B, experiment of MLflow.
    name: of the run.
    group: of runs that belong together.
    tags: of the run.
    """

    project: str = ""
    name: str = ""
    group: str = ""
    tags: Sequence[str] = ()


class Tracker(Protocol):
    """A run in a tracker, open for writing. Any call may raise any exception.

    remedy: what a user can do if the tracker cannot be used, to end an error message.
    """

    remedy: str

    @property
    def id(self) -> str:
        """The run's id in the tracker, by which it is opened again."""

    @property
    def place(self) -> str:
        """Where the user finds the run."""

    @property
    def rest(self) -> str:
        """How the user sends what was handed over and may not have arrived, to end a message."""

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Write the named finite numbers of a step."""

    def write_images(self, step: int, images: Mapping[str, Any]) -> None:
        """Write the named images of a step, each uint8 [n, h, w, 3]."""

    def write_results(self, step: int, results: Mapping[str, float], report: Path) -> None:
        """Write the final metrics, and the files of a report's folder, unless that is in a bucket."""

    def close(self, outcome: str) -> None:
        """Send everything that is pending, and record how the run ended."""


def require_answer(url: str) -> None:
    """Raise unless a server answers, whatever it says.

    Raises:
        OSError: it does not.
    """
    try:
        urllib.request.urlopen(url, timeout=ANSWER_SECONDS).close()
    except urllib.error.HTTPError:  # it answers
        return
    except urllib.error.URLError as error:
        if not isinstance(error.reason, ssl.SSLError):  # certificates are the tracker's business
            raise OSError(f"{url} does not answer: {error.reason}") from error


class Wandb:
    """A run of Weights & Biases. Its files are in the workdir, or in $WANDB_DIR.

    Every line is one row with a column "step", which all charts have as their axis: W&B's own count of rows would
    refuse the lines of steps before its last one.

    Args:
        label: how to name the run.
        workdir: of the run.
        hparams: the configuration, a flat dict.
        run_id: of the run to continue; None: a new one.

    Raises:
        Exception: W&B cannot be used: `wandb.errors.Error` or `OSError`.
    """

    remedy = "run wandb login or set WANDB_API_KEY, or set WANDB_MODE=offline and upload later by wandb sync"

    def __init__(self, label: Label, workdir: Path, hparams: Mapping[str, Any], run_id: str | None):
        import wandb

        own = wandb.setup().settings
        if own.mode not in ("offline", "disabled", "dryrun"):
            # A failed `wandb.init` blocks the run's id in this process, so that it could not be tried again.
            require_answer(own.base_url)
        self._wandb = wandb
        settings = wandb.Settings(init_timeout=CONNECT_SECONDS, silent=True, reinit="create_new")
        self._run: Any = wandb.init(
            project=label.project or os.environ.get("WANDB_PROJECT") or DEFAULT_PROJECT,
            name=label.name or os.environ.get("WANDB_NAME") or workdir.name,
            group=label.group or None,
            tags=label.tags or None,
            id=run_id or os.environ.get("WANDB_RUN_ID") or secrets.token_hex(6),
            resume="allow",
            dir=os.environ.get("WANDB_DIR") or str(workdir),
            config=dict(hparams),
            settings=settings,
        )
        for prefix in ("train", "val", "time", "memory", "images"):
            self._run.define_metric(f"{prefix}/*", step_metric="step")

    @property
    def id(self):
        """The run's id."""
        return self._run.id

    @property
    def place(self):
        """The run's page, or the command that uploads it."""
        if self._run.offline:
            folder = Path(self._run.settings.sync_dir).parent
            return f"offline; upload by wandb sync {folder}/offline-run-*-{self.id}"
        return self._run.url or self.id

    @property
    def rest(self):
        """The command that uploads the files since this start of the run."""
        return f"wandb sync {self._run.settings.sync_dir} uploads the rest"

    def write_scalars(self, step, scalars):
        """Add a row."""
        self._run.log({"step": step, **scalars})

    def write_images(self, step, images):
        """Add a row with pictures."""
        pictures = {
            f"images/{name}": [self._wandb.Image(image) for image in batch] for name, batch in images.items()
        }
        self._run.log({"step": step, **pictures})

    def write_results(self, step, results, report):
        """Set the run's summary, and add the report's page as a row."""
        self._run.summary.update(dict(results))
        page = report / "index.html"
        if page.exists() and not isinstance(page, Address):
            self._run.log({"step": step, "report": self._wandb.Html(str(page), inject=False)})

    def close(self, outcome):
        """Wait for the upload."""
        if outcome == PREEMPTED:
            self._run.mark_preempting()
        self._run.finish(exit_code=0 if outcome == FINISHED else 1)


class MLflow:
    """A run of MLflow, at $MLFLOW_TRACKING_URI or at MLflow's default, ./mlflow.db.

    Args:
        label, workdir, hparams, run_id: as of `Wandb`.

    Raises:
        Exception: MLflow cannot be used: `mlflow.exceptions.MlflowException` or `OSError`.
    """

    remedy = "set MLFLOW_TRACKING_URI to a server that answers, to sqlite:///PATH or to file:PATH"

    def __init__(self, label: Label, workdir: Path, hparams: Mapping[str, Any], run_id: str | None):
        # Otherwise one request is tried for minutes, and paths that the user names by file: are refused.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", str(REQUEST_SECONDS))
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
        os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
        os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")  # `place` is printed
        import mlflow
        from mlflow.entities import Metric, Param

        # They print a dozen lines for every new database, and one for every attempt to connect.
        for name in ("mlflow", "alembic", "urllib3.connectionpool"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._metric = Metric
        self._client: Any = mlflow.MlflowClient()
        self._uri = mlflow.get_tracking_uri()
        self._experiment = label.project or os.environ.get("MLFLOW_EXPERIMENT_NAME") or DEFAULT_PROJECT
        if run_id is None:
            self._id = self._create(label, workdir)
            params = [Param(name, str(value)) for name, value in hparams.items()]
            for start in range(0, len(params), _PARAMS):
                self._client.log_batch(self._id, params=params[start : start + _PARAMS])
        else:
            self._id = run_id
            self._client.update_run(run_id, status="RUNNING")

    def _create(self, label, workdir):
        experiment = self._client.get_experiment_by_name(self._experiment)
        tags = {"workdir": str(workdir)} | dict.fromkeys(label.tags, "true")
        if label.group:
            tags["group"] = label.group
        run = self._client.create_run(
            self._client.create_experiment(self._experiment)
            if experiment is None
            else experiment.experiment_id,
            tags=tags,
            run_name=label.name or workdir.name,
        )
        return run.info.run_id

    @property
    def id(self):
        """The run's id."""
        return self._id

    @property
    def place(self):
        """The run, its experiment and the address."""
        return f"run {self._id} of experiment {self._experiment} at {self._uri}"

    @property
    def rest(self):
        """The same command."""
        return "the same command sends them again"

    def write_scalars(self, step, scalars):
        """Add a value to the history of each metric."""
        now = int(1000 * time.time())
        metrics = [self._metric(name, value, now, step) for name, value in scalars.items()]
        for start in range(0, len(metrics), _METRICS):
            self._client.log_batch(self._id, metrics=metrics[start : start + _METRICS])

    def write_images(self, step, images):
        """Add image artifacts."""
        for name, batch in images.items():
            for number, image in enumerate(batch):
                key = f"{name}_{number}" if len(batch) > 1 else name
                self._client.log_image(self._id, image, key=key, step=step)

    def write_results(self, step, results, report):
        """Add the final metrics, and the report's files as artifacts."""
        self.write_scalars(step, results)
        for name in REPORT_FILES:
            if (report / name).exists() and not isinstance(report, Address):
                self._client.log_artifact(self._id, str(report / name), "report")

    def close(self, outcome):
        """Set the run's status."""
        statuses = {FINISHED: "FINISHED", PREEMPTED: "KILLED", FAILED: "FAILED"}
        self._client.set_terminated(self._id, statuses[outcome])
