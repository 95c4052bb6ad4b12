"""The cluster that started this process, by JAX's own detectors: SLURM, Open MPI, Cloud TPU, Kubernetes, and mpi4py."""

import argparse
import contextlib
import dataclasses
import importlib.util
import os
import sys
from collections.abc import Iterator

from jax._src import clusters  # the detectors have no public name

from cfmlc_jax.errors import InputError

AUTO, NONE, MPI4PY = "auto", "none", "mpi4py"
CHOICES = (AUTO, NONE, MPI4PY)
_NAMES = {
    clusters.OmpiCluster: "Open MPI",
    clusters.SlurmCluster: "SLURM",
    clusters.Mpi4pyCluster: "MPI",
    clusters.GkeTpuCluster: "Cloud TPU",
    clusters.GceTpuCluster: "Cloud TPU",
    clusters.K8sCluster: "Kubernetes",
}
# They start each process by one command, such as srun; the environment of the others is that of a whole machine.
_STARTERS = (clusters.OmpiCluster, clusters.SlurmCluster, clusters.Mpi4pyCluster)
# How many tasks srun has started. The first may be that of the whole allocation, of which an interactive shell is one task,
# and `srun --preserve-env` hands down that sbatch without --ntasks has none.
_SLURM_TASKS = ("SLURM_NTASKS", "SLURM_STEP_NUM_TASKS")
# Set by Open MPI 5, which JAX 0.10 does not detect, and by MPICH and Intel MPI.
_MPI_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE")


@dataclasses.dataclass(frozen=True)
class Cluster:
    """Several processes that belong together.

    detector: JAX's, which found them.
    count: how many there are.
    number: of this process, from 0.
    known_address: host:port of process 0, if asking for it later is too late.
    """

    detector: type[clusters.ClusterEnv]
    count: int
    number: int
    known_address: str | None = None

    @property
    def name(self) -> str:
        """The cluster's name for messages."""
        return _name(self.detector)

    @property
    def started_by_command(self) -> bool:
        """Whether one command (`srun`, `mpirun`) started all of them."""
        return issubclass(self.detector, _STARTERS)

    def address(self, seconds: int) -> str:
        """host:port of process 0; $JAX_COORDINATOR_ADDRESS and $JAX_COORDINATOR_PORT take precedence.

        Args:
            seconds: how long to wait until its name is known.

        Raises:
            InputError: the cluster does not name it.
        """
        known = os.environ.get("JAX_COORDINATOR_ADDRESS") or self.known_address
        return known or _address(self.detector, seconds)


def detect(choice: str = AUTO) -> Cluster | None:
    """The cluster that this process is one of several of; None if it is alone.

    Args:
        choice: "auto": what JAX detects, in its order, and then any MPI by mpi4py; "mpi4py": this without
            detecting anything else; "none": nothing.

    Raises:
        InputError: there is a cluster, but its processes cannot be found.
    """
    if choice == NONE:
        return None
    if choice == MPI4PY:
        return _of(_mpi4py("--cluster=mpi4py needs the package mpi4py"))
    cluster = None
    for detector in clusters.ClusterEnv._cluster_types:
        if not detector.opt_in_only_method and _is_present(detector):
            cluster = _of(detector)
            break
    started = max(int(size) for name in _MPI_SIZES if (size := os.environ.get(name, "0")).isdecimal())
    if cluster is None and started > 1:
        cluster = _of(
            _mpi4py(f"MPI started {started} processes, which find each other by the package mpi4py")
        )
    return cluster


def tasks_left_out(choice: str = AUTO) -> str:
    """A line for the user if SLURM gave this job several tasks, and this process is alone because srun was forgotten.

    Args:
        choice: as of `detect`, which found no cluster; "none" is to be alone on purpose.

    Returns:
        The line; empty if nothing was forgotten.
    """
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if choice != AUTO or "SLURM_JOB_ID" not in os.environ or not tasks.isdecimal() or int(tasks) < 2:
        return ""
    return (
        f"SLURM gave this job {tasks} tasks, of which this run uses one; put srun before the command to use all, or "
        "add --cluster=none"
    )


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Add --cluster to a command that is a single process (`require_one_process`)."""
    parser.add_argument(
        "--cluster",
        choices=(AUTO, NONE),
        default=AUTO,
        help="none: this is one of several processes of a cluster, and has work of its own",
    )


def require_one_process(choice: str) -> None:
    """Raise if a launcher started several processes of a command that is a single one.

    Where the environment of a whole machine or pod says that it is one of several, the first may run it.

    Raises:
        InputError: it did.
        SystemExit: it did, and another process prints that.
    """
    cluster = detect(choice)
    if cluster is None or (cluster.number == 0 and not cluster.started_by_command):
        return
    if cluster.started_by_command:
        if cluster.number > 0:
            raise SystemExit(1)
        way_out = "start it once, by srun -n 1 or mpirun -n 1"
    else:
        way_out = "run it on the first of them"
    raise InputError(
        f"this command is one process, and {cluster.name} has {cluster.count} of it; {way_out}, or add "
        "--cluster=none if each has work of its own"
    )


def _is_present(detector) -> bool:
    if detector is clusters.SlurmCluster:
        needed = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_PROCID")
        return all(name in os.environ for name in needed) and any(name in os.environ for name in _SLURM_TASKS)
    if detector is clusters.K8sCluster:
        # Only the pods of an Indexed Job can be several processes of one run.
        if "JOB_COMPLETION_INDEX" not in os.environ or "KUBERNETES_SERVICE_HOST" not in os.environ:
            return False
        if importlib.util.find_spec("kubernetes") is None:
            raise InputError(
                "this pod is one of an Indexed Job of Kubernetes, whose pods find each other by the package kubernetes; "
                "pip install kubernetes, or add --cluster=none if each pod is a run of its own"
            )
    with _asked(_name(detector)):
        return detector.is_env_present()


def _of(detector) -> Cluster | None:
    """The processes that a detector finds; None for a single one."""
    name, known_address = _name(detector), None
    with _asked(name):
        if detector is clusters.SlurmCluster:
            count = min(int(os.environ[each]) for each in _SLURM_TASKS if each in os.environ)
        else:
            count = detector.get_process_count()
        number = detector.get_process_id() if count > 1 else 0
    mpi = sys.modules.get("mpi4py.MPI")
    if mpi is not None and mpi.Is_initialized() and not mpi.Is_finalized():
        # The detector has begun an MPI program. All processes end it here: mpirun takes one that ends otherwise for failed.
        known_address = _address(detector, 0)
        mpi.Finalize()
    if count == 1:
        return None
    if not 0 <= number < count:
        raise InputError(
            f"{name} numbers this process {number} of {count}, from 0; start all of them by one command, or add "
            "--cluster=none"
        )
    return Cluster(detector, count, number, known_address)


def _address(detector, seconds) -> str:
    with _asked(_name(detector)):
        return detector.get_coordinator_address(
            timeout_secs=seconds, override_coordinator_port=os.environ.get("JAX_COORDINATOR_PORT")
        )


def _name(detector) -> str:
    return _NAMES.get(detector, detector.__name__)


def _mpi4py(problem):
    if not clusters.Mpi4pyCluster.is_env_present():
        raise InputError(f"{problem}; pip install mpi4py, or add --cluster=none if each is a run of its own")
    return clusters.Mpi4pyCluster


@contextlib.contextmanager
def _asked(name) -> Iterator[None]:
    """A block that asks a detector: it reads variables, files and services, and raises whatever these raise."""
    try:
        yield
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{name} was detected, but not its processes ({type(error).__name__}: {reason[:300]}); add --cluster=none "
            "for a single process, or that and --coordinator, --num_processes and --process_id"
        ) from error
