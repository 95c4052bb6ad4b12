"""A run in a bucket, of a server on this machine: killed, cut off, resumed and used like any other run."""

import contextlib
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

TESTS = Path(__file__).parent
# Ten steps with a checkpoint every four.
TRAIN = (
    "cfmlc_jax.main",
    f"--config={TESTS / 'configs' / 'tiny.py'}",
    "--config.train.epochs=1",
    "--config.data.scenes.num_train=80",
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
    pytest.importorskip("s3fs")
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
            import s3fs

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
    """The lines of metrics.jsonl without times."""
    return [
        {name: value for name, value in json.loads(line).items() if not name.startswith("time/")}
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
