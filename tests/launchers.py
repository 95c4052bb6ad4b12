"""Several local processes, started as clusters start them: their variables, and stand-ins for their services."""

import os
import random
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAUNCHERS = ("slurm", "open_mpi", "gke_tpu", "gce_tpu", "kubernetes", "mpi4py")
# Of these variables a test decides; none comes from where the tests run.
PREFIXES = (
    "SLURM_",
    "OMPI_",
    "PMI_",
    "TPU_",
    "MEGASCALE_",
    "KUBERNETES_",
    "JOB_COMPLETION_INDEX",
    "JAX_COORDINATOR",
)

# Code before the command's: what JAX's detectors ask besides the variables.
TPU_HOST = """
import os
from jax._src.clusters import cloud_tpu_cluster
METADATA = {"worker-network-endpoints": "a:1:127.0.0.1,b:2:127.0.0.1"}
if "TEST_NUMBER" in os.environ:
    METADATA["agent-worker-number"] = os.environ["TEST_NUMBER"]
cloud_tpu_cluster.get_metadata = lambda key: (METADATA.get(key, ""), 200 if key in METADATA else 404)
cloud_tpu_cluster.running_in_cloud_tpu_vm = True
del os.environ["TPU_SKIP_MDS_QUERY"]  # JAX sets it where it sees no TPU
"""
PODS = """
import socket, sys
from types import ModuleType, SimpleNamespace as Object
from jax._src.clusters import k8s_cluster
JOB = Object(metadata=Object(name="run", labels={}), spec=Object(parallelism=2))
POD = Object(
    metadata=Object(name="pod", labels={"job-name": "run"}, owner_references=[Object(controller=True, kind="Job")]),
    spec=Object(subdomain="pods"),
)
CORE = Object(list_namespaced_pod=lambda **options: Object(items=[POD]))
BATCH = Object(read_namespaced_job=lambda **options: JOB)
kubernetes = sys.modules["kubernetes"] = ModuleType("kubernetes")
kubernetes.__spec__ = k8s_cluster.__spec__
kubernetes.config = Object(load_incluster_config=lambda: None)
kubernetes.client = Object(
    CoreV1Api=lambda: CORE, BatchV1Api=lambda: BATCH, exceptions=Object(ApiException=ZeroDivisionError)
)
k8s_cluster.K8sCluster._namespace = classmethod(lambda cls: "default")
addresses, hosts = socket.getaddrinfo, {"run-0.pods": "127.0.0.1", "pod": "127.0.0.1"}
socket.gethostbyname = lambda host: hosts[host]
socket.getaddrinfo = lambda host, *rest, **options: addresses(hosts.get(host, host), *rest, **options)
"""
# An MPI whose process 0 hands its address to the others by a file.
MPI = """
import os, sys, time
from pathlib import Path
from types import ModuleType
from jax._src.clusters import mpi4py_cluster

class World:
    def Get_rank(self):
        return int(os.environ["OMPI_COMM_WORLD_RANK"])

    def Get_size(self):
        return int(os.environ["OMPI_COMM_WORLD_SIZE"])

    def bcast(self, text, root):
        note = Path(os.environ["TEST_NOTE"])
        if self.Get_rank() == root:
            note.with_suffix(".new").write_text(text)
            note.with_suffix(".new").rename(note)
        while not note.exists():
            time.sleep(0.01)
        return note.read_text()

mpi = sys.modules["mpi4py"] = ModuleType("mpi4py")
mpi.__spec__ = mpi4py_cluster.__spec__
MPI = mpi.MPI = sys.modules["mpi4py.MPI"] = ModuleType("MPI")
ended = Path(f"{os.environ['TEST_NOTE']}.{World().Get_rank()}")
MPI.Is_initialized, MPI.Is_finalized, MPI.Finalize = (lambda: True), ended.exists, ended.touch
mpi.MPI.COMM_WORLD = World()
"""
PREAMBLES = {"gke_tpu": TPU_HOST, "gce_tpu": TPU_HOST, "kubernetes": PODS, "mpi4py": MPI}


def free_port():
    """A port in the range from which JAX takes those of SLURM and Open MPI."""
    while True:
        port = random.randrange(2**16 - 2**12, 2**16)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port


def variables(launcher, count, number, port, note=""):
    """The environment variables of one process that a launcher starts; of none (None) there are none."""
    if launcher is None:
        return {}
    if launcher == "slurm":
        return {
            "SLURM_JOB_ID": str(port % 2**12),
            "SLURM_NTASKS": str(count),
            "SLURM_STEP_NUM_TASKS": str(count),
            "SLURM_PROCID": str(number),
            "SLURM_LOCALID": str(number),
            "SLURM_STEP_NODELIST": "localhost",
        }
    mpi = {
        "OMPI_COMM_WORLD_SIZE": str(count),
        "OMPI_COMM_WORLD_RANK": str(number),
        "OMPI_COMM_WORLD_LOCAL_RANK": str(number),
    }
    if launcher == "open_mpi":
        return mpi | {"OMPI_MCA_orte_hnp_uri": f"{port % 2**12 * 2**12}.0;tcp://127.0.0.1:34911"}
    return {
        "gke_tpu": {"TPU_WORKER_HOSTNAMES": ",".join(["127.0.0.1"] * count), "TPU_WORKER_ID": str(number)},
        "gce_tpu": {"TEST_NUMBER": str(number)},
        "kubernetes": {
            "KUBERNETES_SERVICE_HOST": "10.0.0.1",
            "HOSTNAME": "pod",
            "JOB_COMPLETION_INDEX": str(number),
        },
        "mpi4py": {"TEST_NOTE": str(note), "OMPI_VERSION": "5.0.3"} | mpi,
    }[launcher] | {"JAX_COORDINATOR_PORT": str(port)}


def clean(environment):
    """The environment without what clusters set."""
    return {name: value for name, value in environment.items() if not name.startswith(PREFIXES)}


def start(launcher, program, *arguments, count=2, note="", **more):
    """Start `count` processes of a program (its text) that differ in their variables alone."""
    port = free_port()
    base = clean(os.environ) | {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")]),
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # one device each
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", PREAMBLES.get(launcher, "") + program, *arguments],
            env=base | variables(launcher, count, number, port, note) | more,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]


def ends(started, seconds=120):
    """(exit code, stdout, stderr) of each."""
    results = []
    for process in started:
        out, err = process.communicate(timeout=seconds)
        results.append((process.returncode, out, err))
    return results
