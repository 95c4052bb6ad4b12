"""A run in a bucket, of a server on this machine: killed, cut off, resumed and used like any other run."""

import contextlib
import http.server
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from cfmlc_jax import buckets, files
from cfmlc_jax.errors import InputError

TESTS = Path(__file__).parent
# Ten steps with a checkpoint every four.
TRAIN = (
    "cfmlc_jax.main",
    f"--config={TESTS / 'configs' / 'tiny.py'}",
    "--config.train.epochs=1",
    "--config.data.scenes.num_train=80",
    "--config.effect.kinds=()",
    "--config.train.checkpoint_every=4",
    "--config.data.test_splits=('test_iid',)",
)
RUN = "s3://bucket/runs/killed"


class Relay:
    """A port of this machine that leads to another one, until it is closed."""

    def __init__(self, port):
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open = []
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                client, _ = self._listener.accept()
                server = socket.create_connection(("127.0.0.1", self._to))
            except OSError:
                return
            self._open += [client, server]
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=(source, target), daemon=True).start()

    def _pass_on(self, source, target):
        try:
            while data := source.recv(2**16):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            return

    def close(self):
        for each in (self._listener, *self._open):
            with contextlib.suppress(OSError):  # not connected any more
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def environment(port):
    return os.environ | {
        "PYTHONPATH": str(TESTS.parent),
        "XLA_FLAGS": "--xla_backend_optimization_level=1",
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "anyone",
        "AWS_SECRET_ACCESS_KEY": "anything",
        "AWS_DEFAULT_REGION": "us-east-1",
    }


@pytest.fixture(scope="module")
def server():
    """The port of a server of buckets, with one bucket."""
    s3fs = pytest.importorskip("s3fs")
    pytest.importorskip("moto")
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            port = next(int(m[1]) for line in process.stderr if (m := re.search(r"127\.0\.0\.1:(\d+)", line)))
            threading.Thread(target=process.stderr.read, daemon=True).start()
            system = s3fs.S3FileSystem(
                key="anyone",
                secret="anything",
                endpoint_url=f"http://127.0.0.1:{port}",
                use_listings_cache=False,
            )
            system.mkdir("bucket")
            yield port, system
        finally:
            process.kill()


def start(port, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", *arguments],
        env=environment(port),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def await_checkpoint(system, process, step):
    """Wait until a checkpoint is complete."""
    while not system.exists(f"{RUN}/checkpoints/{step}/_CHECKPOINT_METADATA"):
        assert process.poll() is None, finish(process)
        time.sleep(0.02)


def arrays(folder, step):
    """The arrays of a local checkpoint, by item and name."""
    import jax
    import orbax.checkpoint as ocp

    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as checkpointer:
        restored = checkpointer.restore(
            folder / "checkpoints" / str(step),
            args=ocp.args.Composite(model=ocp.args.StandardRestore(), training=ocp.args.StandardRestore()),
        )
    return {
        jax.tree_util.keystr(place): np.asarray(leaf)
        for place, leaf in jax.tree.leaves_with_path(dict(restored.items()))
    }


def logged(text):
    """The lines of metrics.jsonl without times and memory."""
    return [
        {name: value for name, value in json.loads(line).items() if not name.startswith(("time/", "memory/"))}
        for line in text.splitlines()
    ]


def test_a_run_that_is_killed_and_cut_off_and_resumed(server, tmp_path):
    port, system = server
    workdir = f"--workdir={RUN}"

    process = start(port, *TRAIN, workdir)
    await_checkpoint(system, process, 4)
    process.send_signal(signal.SIGKILL)
    assert finish(process)[0] == -signal.SIGKILL
    assert system.exists(f"{RUN}/.lock")

    relay = Relay(port)
    process = start(relay.port, *TRAIN, workdir)
    await_checkpoint(system, process, 8)
    relay.close()
    code, out, err = finish(process)
    assert code == 1, err
    assert "resuming at step" in out
    last = err.strip().splitlines()[-1]
    assert last.startswith(f"error: {RUN}")
    assert "Could not connect" in last
    assert "Traceback" not in err

    code, out, err = finish(start(port, *TRAIN, workdir))
    assert code == 0, err
    assert f"resuming at step {8}" in out or f"resuming at step {10}" in out
    assert out.splitlines()[-1] == f"report {RUN}/report/index.html"
    assert not system.exists(f"{RUN}/.lock")

    code, _, err = finish(start(port, *TRAIN, f"--workdir={tmp_path / 'whole'}"))
    assert code == 0, err
    system.get(RUN, str(tmp_path / "killed"), recursive=True)
    whole, resumed = tmp_path / "whole", tmp_path / "killed"
    assert logged((resumed / "metrics.jsonl").read_text()) == logged((whole / "metrics.jsonl").read_text())
    expected, got = arrays(whole, 10), arrays(resumed, 10)
    assert got.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)
    for name in ("results.json", "results.md", "per_class_test_iid_average.csv"):
        assert (resumed / "report" / name).read_text() == (whole / "report" / name).read_text()


def test_what_reads_a_run_reads_it_in_a_bucket(server, tmp_path):
    """After the test above, which leaves the run."""
    from PIL import Image

    port, system = server
    photo = tmp_path / "photo.png"
    Image.new("RGB", (40, 30), (200, 30, 30)).save(photo)
    out = "s3://bucket/predicted/one.jsonl"
    flags = ("--format=jsonl", f"--output={out}", "--overlay=s3://bucket/predicted/pictures", "--top=2")
    code, _, err = finish(start(port, "cfmlc_jax.predict", f"--checkpoint={RUN}", str(photo), *flags))
    assert code == 0, err
    line = json.loads(system.cat_file(out))
    assert len(line["labels"]) == 2
    assert system.cat_file("s3://bucket/predicted/pictures/photo.png").startswith(b"\x89PNG")
    page = system.cat_file(f"{RUN}/report/index.html")
    system.rm(f"{RUN}/report/index.html")
    code, text, err = finish(start(port, "cfmlc_jax.report", RUN))
    assert (code, text) == (0, f"report {RUN}/report/index.html\n"), err
    assert system.cat_file(f"{RUN}/report/index.html") == page


# Processes that share no disk save a state of which each holds a part, and restore it.
TOGETHER = """
import errno, sys
import jax, jax.numpy as jnp
jax.config.update("jax_num_cpu_devices", 1)
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from jax.sharding import NamedSharding, PartitionSpec
from cfmlc_jax import buckets, files, processes
from cfmlc_jax.checkpoint import Checkpoints
mesh = jax.make_mesh((2,), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))
parts, whole = NamedSharding(mesh, PartitionSpec("fsdp")), NamedSharding(mesh, PartitionSpec())
model = jax.jit(lambda: {"w": jnp.arange(8.0).reshape(4, 2)}, out_shardings=parts)()
training = jax.jit(lambda: {"step": jnp.int32(7)}, out_shardings=whole)()
checkpoints = Checkpoints(files.path_of("s3://bucket/together/checkpoints"))
checkpoints.save(7, model=model, training=training, meta={"class_names": [], "finished": False})
checkpoints.rank(7, 0.5, {"finished": True})
abstract = jax.tree.map(
    lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), (model, training)
)
again, rest, meta = checkpoints.restore_latest(
    model=abstract[0], training=abstract[1], check=lambda path, meta: None, warn=print
)
assert again["w"].sharding == parts and not again["w"].is_fully_addressable
equal = jax.jit(lambda a, b: (a == b).all(), out_shardings=whole)(again["w"], model["w"])
print(bool(equal), int(rest["step"]), meta["finished"], flush=True)
if jax.process_index() == 0:
    def refuse(*arguments):
        raise OSError(errno.EIO, "gone")
    buckets.filesystem("s3").put = refuse
checkpoints.save(8, model=model, training=training, meta={})
try:
    checkpoints.wait()
except OSError as error:
    print(error, flush=True)
if jax.process_index() == 0:
    def fail(*arguments):
        raise ZeroDivisionError("a defect")
    buckets.filesystem("s3").put = fail
checkpoints.save(9, model=model, training=training, meta={})
processes.WAIT_SECONDS = 5.0  # after which nothing was heard of the first
try:
    checkpoints.wait()
except (ZeroDivisionError, jax.errors.JaxRuntimeError):
    print("not saved", flush=True)
checkpoints.close()
"""


def test_processes_without_a_common_disk(server):
    port, system = server
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TOGETHER, address, str(number)],
            env=environment(port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for code, out, err in [finish(process) for process in processes]:
        assert code == 0, err
        values, error, defect = out.splitlines()[-3:]
        assert (values, defect) == ("True 7 True", "not saved")
        assert error.startswith("s3://bucket/together/checkpoints/8 cannot be written (gone)")
    assert not system.exists("s3://bucket/together/checkpoints/8/_CHECKPOINT_METADATA")


class Refusing(http.server.BaseHTTPRequestHandler):
    """Answers that nobody has rights."""

    def do_GET(self):
        self.send_response(403)
        self.end_headers()

    do_HEAD = do_PUT = do_GET

    def log_message(self, *_):
        pass


def test_a_bucket_that_cannot_be_used(monkeypatch):
    s3fs = pytest.importorskip("s3fs")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "nowhere")

    def message(port, **options):
        system = s3fs.S3FileSystem(
            endpoint_url=f"http://127.0.0.1:{port}",
            config_kwargs={"retries": {"max_attempts": 0}},
            use_listings_cache=False,
            skip_instance_cache=True,
            **options,
        )
        system.retries = 1
        monkeypatch.setattr(buckets, "filesystem", lambda scheme: system)
        with pytest.raises(InputError) as error:
            files.place("s3://bucket/run", "--workdir", bucket=True)
        assert "\n" not in str(error.value)
        return str(error.value)

    anyone = {"key": "anyone", "secret": "anything"}
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Refusing) as refusing:
        threading.Thread(target=refusing.serve_forever, daemon=True).start()
        port = refusing.server_address[1]
        assert message(port, **anyone).startswith(
            "--workdir: s3://bucket/run cannot be used (access denied: Forbidden); get rights or credentials"
        )
        assert "cannot be used (no valid credentials: Unable to locate credentials)" in message(port)
        refusing.shutdown()
    assert "cannot be used (Could not connect to the endpoint URL" in message(port, **anyone)
