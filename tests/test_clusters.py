"""Clusters: who started the processes, how they share GPUs, and what a run of several is like."""

import ctypes
import os
import signal
import socket

import launchers
import pytest
from jax._src.clusters import GceTpuCluster, Mpi4pyCluster

from cfmlc_jax import cli, processes
from cfmlc_jax.cgn import __main__ as cgn
from cfmlc_jax.clusters import detect, gpus
from cfmlc_jax.errors import InputError
from cfmlc_jax.predict import __main__ as predict
from cfmlc_jax.report import __main__ as report
from cfmlc_jax.torch_weights import __main__ as torch_weights

# Joins the others, and then fails as its first argument says.
JOINS = """
import os, signal, sys, time
from cfmlc_jax import cli
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job has it ignored
cli.end_at_interrupt()
import jax
from cfmlc_jax import processes
from cfmlc_jax.errors import InputError

processes.SIGN_SECONDS, processes.SILENCE_SECONDS = 0.3, 5.0
what, *flags = sys.argv[1:]
coordinator, count, number = (*flags, None, None, None)[:3]
members = processes.Alone()
try:
    mistake = InputError("a flag is wrong") if what == "mistaken" else None
    members = processes.join(coordinator, count, number, mistake=mistake)
    with members:
        print(f"{jax.process_index()} of {jax.process_count()}", flush=True)
        if what == "all fail":
            raise InputError("photos/ is missing")
        if what == "one fails" and jax.process_index() == 1:
            raise InputError("photos/ is missing")
        if what == "all have a defect":
            raise ZeroDivisionError("by zero")
        if what == "one is killed" and jax.process_index() == 1:
            time.sleep(1)
            os.kill(os.getpid(), signal.SIGKILL)
        if what == "one is killed" and jax.process_index() == 2:
            time.sleep(2)
            raise ValueError("UNKNOWN: Gloo AllGather failed: Connection closed by peer")
        if what != "end":
            time.sleep(60)
    members.leave()
except InputError as error:
    members.fail(error)
    cli.end(1)
cli.end(0)
"""


@pytest.fixture
def started_by(monkeypatch):
    """Sets this process's variables as a launcher would, and some otherwise (None: not set)."""
    for name in launchers.clean(os.environ).keys() ^ os.environ.keys():
        monkeypatch.delenv(name)

    def start(launcher, count=2, number=1, **otherwise):
        given = launchers.variables(launcher, count, number, 62000) if launcher else {}
        for name, value in (given | otherwise).items():
            if value is None:
                monkeypatch.delenv(name, raising=False)
            else:
                monkeypatch.setenv(name, value)

    return start


@pytest.mark.parametrize(
    ("launcher", "name", "port"), [("slurm", "SLURM", 62000), ("open_mpi", "Open MPI", 62000)]
)
def test_launchers_are_detected(started_by, launcher, name, port):
    started_by(launcher, 4, 3)
    cluster = detect.detect()
    assert (cluster.name, cluster.count, cluster.number, cluster.started_by_command) == (name, 4, 3, True)
    assert cluster.address(1).rpartition(":")[2] == str(port)
    if launcher == "slurm":  # srun --preserve-env in an sbatch without --ntasks
        started_by(launcher, 4, 3, SLURM_NTASKS=None)
        assert detect.detect() == cluster
    started_by(None, JAX_COORDINATOR_PORT="1234")
    assert cluster.address(1).rpartition(":")[2] == "1234"
    started_by(None, JAX_COORDINATOR_ADDRESS="node9:99")
    assert cluster.address(1) == "node9:99"
    assert detect.detect(detect.NONE) is None


@pytest.mark.parametrize(
    ("launcher", "count", "otherwise"),
    [
        (None, 1, {}),
        ("slurm", 1, {}),  # srun -n 1
        ("slurm", 4, {"SLURM_STEP_NUM_TASKS": "1"}),  # a shell of salloc
        ("slurm", 4, {"SLURM_STEP_NODELIST": None, "SLURM_STEP_NUM_TASKS": None}),  # sbatch without srun
        ("slurm", 1, {"SLURM_STEP_NUM_TASKS": "4"}),  # sbatch from such a shell
        ("open_mpi", 1, {}),
        (None, 1, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}),  # any pod
        (None, 1, {"JOB_COMPLETION_INDEX": "3"}),
        (None, 1, {"PMI_SIZE": "1"}),
        (None, 1, {"PMI_SIZE": "many"}),
        (None, 1, {"TPU_WORKER_HOSTNAMES": "a,b", "TPU_WORKER_ID": "1"}),  # no TPU here
    ],
)
def test_a_single_process_waits_for_nobody(started_by, launcher, count, otherwise):
    started_by(launcher, count, 0, **otherwise)
    assert detect.detect() is None
    with processes.join(None, None, None) as members:
        assert isinstance(members, processes.Alone)
    detect.require_one_process(detect.AUTO)


@pytest.mark.parametrize(
    ("count", "otherwise", "forgotten"),
    [
        (4, {"SLURM_STEP_NODELIST": None, "SLURM_STEP_NUM_TASKS": None}, True),  # sbatch without srun
        (4, {"SLURM_STEP_NUM_TASKS": "1"}, True),  # a shell of salloc
        (1, {}, False),  # srun -n 1
        (1, {"SLURM_NTASKS": None}, False),
        (4, {"SLURM_JOB_ID": None}, False),
    ],
)
def test_a_line_says_that_srun_was_forgotten(started_by, count, otherwise, forgotten):
    started_by("slurm", count, 0, **otherwise)
    assert detect.detect() is None
    expected = "SLURM gave this job 4 tasks, of which this run uses one; put srun before the command"
    assert detect.tasks_left_out().startswith(expected) == forgotten
    assert detect.tasks_left_out(detect.NONE) == ""


@pytest.mark.parametrize(
    ("launcher", "otherwise", "words"),
    [
        ("slurm", {"SLURM_PROCID": "7"}, "SLURM numbers this process 7 of 2, from 0"),
        (
            "slurm",
            {"SLURM_NTASKS": "two"},
            "SLURM was detected, but not its processes .ValueError: .*add --cluster=none",
        ),
        (
            "open_mpi",
            {"OMPI_COMM_WORLD_RANK": None},
            "Open MPI was detected, but not its processes .KeyError",
        ),
        (
            None,
            {"KUBERNETES_SERVICE_HOST": "10.0.0.1", "JOB_COMPLETION_INDEX": "0"},
            "Indexed Job of Kubernetes.*pip install kubernetes, or add --cluster=none",
        ),
        (None, {"PMI_SIZE": "4"}, "MPI started 4 processes.*pip install mpi4py, or add --cluster=none"),
    ],
)
def test_processes_that_cannot_be_found_are_an_error(started_by, launcher, otherwise, words):
    started_by(launcher, **otherwise)
    with pytest.raises(InputError, match=words):
        processes.join(None, None, None)
    assert detect.detect(detect.NONE) is None
    # Whoever names the coordinator needs no detector.
    with pytest.raises(InputError, match="--process_id=9 must be from 0 to 1"):
        processes.join("node1:1234", 2, 9, cluster=detect.NONE).__enter__()


def test_mpi4py_must_be_installed(started_by, monkeypatch):
    started_by(None)
    monkeypatch.setattr(Mpi4pyCluster, "is_env_present", classmethod(lambda cls: False))
    with pytest.raises(InputError, match="--cluster=mpi4py needs the package mpi4py; pip install mpi4py"):
        detect.detect(detect.MPI4PY)


def test_an_address_that_cannot_be_used(started_by):
    started_by("slurm", JAX_COORDINATOR_ADDRESS="node1")
    with pytest.raises(InputError, match="SLURM gives 'node1' as the address of process 0"):
        processes.join(None, None, None)


@pytest.mark.parametrize("launcher", launchers.LAUNCHERS)
def test_processes_of_a_cluster_connect(launcher, tmp_path):
    started = launchers.start(launcher, JOINS, "end", note=tmp_path / "note")
    (code, first, err), (other, second, more) = launchers.ends(started)
    assert (code, err, other, more) == (0, "", 0, "")
    line, member = first.splitlines()
    assert "2 processes, which meet at " in line
    assert (member, second) == ("0 of 2", "1 of 2\n")
    if launcher == "mpi4py":  # else mpirun would report that they failed
        assert all((tmp_path / f"note.{number}").exists() for number in range(2))


HOST = socket.gethostname()


@pytest.mark.parametrize(
    ("arguments", "lines"),
    [
        (["mistaken"], ["error: a flag is wrong"]),
        (["all fail"], ["error: photos/ is missing"]),
        (["one fails"], [f"error: process 1 on {HOST} failed: photos/ is missing"]),
        (
            ["one is killed"],
            [f"error: process 1 on {HOST} is gone (no sign of life for 5 s): it was killed, or"],
        ),
        (["end", "node1:1"], ["error: --coordinator=node1:1 needs --num_processes too; add it"]),
    ],
)
def test_errors_are_printed_once(arguments, lines):
    results = launchers.ends(launchers.start("slurm", JOINS, *arguments, count=3))
    killed = arguments == ["one is killed"]
    assert [code for code, _, _ in results] == [1, -9 if killed else 1, 1]
    printed = [line for _, _, err in results for line in err.splitlines()]
    if arguments == ["all fail"]:  # process 0 may hear of another's before it fails
        printed = [f"error: {line.removeprefix('error: ').rpartition(' failed: ')[2]}" for line in printed]
    assert len(printed) == len(lines)
    for line, expected in zip(printed, lines):
        assert line.startswith(expected)


def test_a_defect_of_all_is_printed_once():
    results = launchers.ends(launchers.start("slurm", JOINS, "all have a defect"))
    assert [code for code, _, _ in results] == [1, 1]
    text = "".join(err for _, _, err in results)
    assert text.count("Traceback") == 1
    assert "ZeroDivisionError: by zero" in text


def test_an_interrupt_of_all_is_printed_once():
    started = launchers.start("slurm", JOINS, "wait")
    for number, process in enumerate(started):
        while process.stdout.readline() not in (f"{number} of 2\n", ""):
            pass
    for process in started:  # as a terminal or srun does
        process.send_signal(signal.SIGINT)
    results = launchers.ends(started)
    assert [(code, err) for code, _, err in results] == [(130, "interrupted\n"), (130, "")]


def test_a_coordinator_beside_a_cluster_is_an_error():
    flags = ["end", "node1:1234", "2", "0"]
    program = JOINS.replace("(coordinator, count, number", "(coordinator, int(count), int(number)")
    results = launchers.ends(launchers.start("open_mpi", program, *flags))
    assert [code for code, _, _ in results] == [1, 1]
    (line,) = [line for _, _, err in results for line in err.splitlines()]
    assert line.startswith("error: --coordinator=node1:1234 beside Open MPI, which has started 2 processes")
    assert "--cluster=none" in line


def test_a_proxy_is_not_asked():
    """Of clusters whose machines reach the network through one only."""
    nobody = "http://127.0.0.1:9"
    started = launchers.start("slurm", JOINS, "end", http_proxy=nobody, https_proxy=nobody)
    assert [(code, err) for code, _, err in launchers.ends(started)] == [(0, ""), (0, "")]


A, B, C, D = "abcd"
WAY_OUT = "add --gpus-per-task=1"


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        ([[], []], [None, None]),
        ([[A], [B]], [None, None]),  # --gpus-per-task=1
        ([[A, B, C, D], []], [None, None]),
        ([[A, B], [A, B]], [[0], [1]]),
        ([[A, B], [B, A]], [[0], [0]]),
        ([[A, B, C, D], [A, B, C, D]], [[0, 1], [2, 3]]),
        ([[A, B], [A, B], [C, D], [C, D]], [[0], [1], [0], [1]]),  # two machines
    ],
)
def test_processes_share_the_gpus_that_they_see(visible, expected):
    by_process = dict(enumerate(visible))
    assert [gpus.share(number, by_process, WAY_OUT) for number in by_process] == expected


@pytest.mark.parametrize(
    ("visible", "words"),
    [
        ([[A], [A]], "processes 0, 1 share 1 GPU"),
        ([[B], [A], [A], [A]], "processes 1, 2, 3 share 1 GPU"),
        ([[A, B, C], [A, B, C]], "processes 0, 1 share 3 GPU"),
        ([[A, B], [B, C]], "processes 0, 1 see some GPUs in common and some not"),
    ],
)
def test_gpus_that_cannot_be_shared_are_an_error(visible, words):
    with pytest.raises(InputError, match=f"{words}.*; {WAY_OUT}"):
        gpus.share(1, dict(enumerate(visible)), WAY_OUT)


class Driver:
    """NVIDIA's driver with two GPUs, whose UUIDs are all ones and all twos."""

    def cuInit(self, flags):
        return 0

    def cuDeviceGetCount(self, count):
        count._obj.value = 2
        return 0

    def cuDeviceGet(self, device, ordinal):
        device._obj.value = ordinal + 1
        return 0

    def cuDeviceGetUuid_v2(self, uuid, device):
        ctypes.memmove(uuid._obj, bytes([device.value] * 16), 16)
        return 0


def test_gpus_are_those_of_the_driver(monkeypatch, tmp_path):
    monkeypatch.setattr(gpus.ctypes, "CDLL", lambda name: Driver())
    plugin = tmp_path / "jax_plugins" / "xla_cuda13"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").touch()
    assert gpus.visible() == []  # JAX computes on CPUs
    monkeypatch.syspath_prepend(tmp_path)
    assert gpus.visible() == ["01" * 16, "02" * 16]
    monkeypatch.setattr(Driver, "cuInit", lambda self, flags: 100)  # no device
    assert gpus.visible() == []


# Processes of a machine with GPUs, as their driver lists them.
WITH_GPUS = """
import os
from cfmlc_jax.clusters import gpus
gpus.visible = lambda: os.environ["TEST_GPUS"].split(",")
os.environ.pop("JAX_PLATFORMS")
"""


def test_tasks_that_share_a_gpu_are_told_the_flag_of_srun():
    results = launchers.ends(launchers.start("slurm", WITH_GPUS + JOINS, "end", TEST_GPUS="a"))
    assert [code for code, _, _ in results] == [1, 1]
    (line,) = [line for _, _, err in results for line in err.splitlines()]
    assert "processes 0, 1 share 1 GPU " in line
    assert "--gpus-per-task=1" in line


def test_tasks_that_see_the_same_gpus_divide_them():
    program = JOINS.replace(
        "jax.process_index()} of", "jax._src.xla_bridge.CUDA_VISIBLE_DEVICES.value} of", 1
    )
    assert program != JOINS
    program = program.replace("with members:", "jax.config.update('jax_platforms', 'cpu')\n    with members:")
    results = launchers.ends(launchers.start("slurm", WITH_GPUS + program, "end", TEST_GPUS="a,b,c,d"))
    assert [(code, out.splitlines()[-1]) for code, out, _ in results] == [(0, "0,1 of 2"), (0, "2,3 of 2")]


COMMANDS = [
    (predict, ["--checkpoint=run", "nowhere.jpg"]),
    (report, ["nowhere"]),
    (torch_weights, ["nowhere", "new"]),
    (cgn, ["masks", "--checkpoint=nowhere"]),
]


@pytest.mark.parametrize(("command", "arguments"), COMMANDS)
def test_a_command_of_one_process_is_not_run_by_several(
    started_by, monkeypatch, capsys, tmp_path, command, arguments
):
    monkeypatch.chdir(tmp_path)
    started_by("slurm", 4, 0)
    assert command.main(arguments) == 1
    error = capsys.readouterr().err
    assert error.startswith(
        "error: this command is one process, and SLURM has 4 of it; start it once, by srun -n 1"
    )
    started_by("slurm", 4, 2)
    with pytest.raises(SystemExit) as end:
        command.main(arguments)
    assert (end.value.code, capsys.readouterr().err) == (1, "")
    # Each may have work of its own.
    assert command.main([*arguments, "--cluster=none"]) == 1
    assert "nowhere" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [0, 1])
def test_on_a_pod_of_machines_the_first_runs_commands(monkeypatch, number):
    cluster = detect.Cluster(GceTpuCluster, 2, number)
    monkeypatch.setattr(detect, "detect", lambda choice: cluster)
    if number == 0:
        detect.require_one_process(detect.AUTO)
        return
    with pytest.raises(InputError, match="Cloud TPU has 2 of it; run it on the first of them"):
        detect.require_one_process(detect.AUTO)


@pytest.mark.parametrize(
    ("arguments", "number", "greets"),
    [
        (["--config=a.py"], None, True),
        (["--config=a.py"], 0, True),
        (["--config=a.py"], 1, False),
        (["--process_id=0"], 1, True),
        (["--process_id", "1"], None, False),
    ],
)
def test_the_first_process_greets(started_by, capsys, arguments, number, greets):
    started_by(None if number is None else "slurm", 2, number)
    cli.greet(arguments)
    assert ("loading JAX" in capsys.readouterr().out) == greets
