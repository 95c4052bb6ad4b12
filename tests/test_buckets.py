"""Addresses in buckets behave as paths do; the bucket is fsspec's in memory, or another fake."""

import dataclasses
import errno
import json
import os
import pickle
import re
import socket
import threading
import time
from pathlib import Path

import fsspec
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from cfmlc_jax import buckets, cli, digests, files, lock
from cfmlc_jax import checkpoint as checkpoints
from cfmlc_jax import config as configs
from cfmlc_jax.cgn import __main__ as cgn
from cfmlc_jax.check import __main__ as check
from cfmlc_jax.classify import finetune
from cfmlc_jax.config import workdir
from cfmlc_jax.data import build
from cfmlc_jax.data.regions.lvis import Category
from cfmlc_jax.data.regions.records import RegionRecords, Writer
from cfmlc_jax.data.sources import annotations
from cfmlc_jax.data.sources.coco import Coco
from cfmlc_jax.data.sources.instances import Instances
from cfmlc_jax.data.sources.table import Table
from cfmlc_jax.engine.writers import JsonlWriter
from cfmlc_jax.errors import BucketError, InputError, RunError, WriteError
from cfmlc_jax.predict import __main__ as predict
from cfmlc_jax.report import __main__ as report
from cfmlc_jax.torch_weights import __main__ as torch_weights


@pytest.fixture
def run(monkeypatch):
    """s3://bucket/run, of which nothing exists but the bucket."""
    system = fsspec.filesystem("memory")
    system.store.clear()
    system.pseudo_dirs[:] = ["", "/bucket"]
    monkeypatch.setattr(buckets, "filesystem", lambda scheme: system)
    return files.place("s3://bucket/run", "--workdir", bucket=True)


def broken(monkeypatch, **methods):
    """Replace methods of the bucket's file system."""
    system = fsspec.filesystem("memory")
    for name, method in methods.items():
        monkeypatch.setattr(system, name, method)


def refuse(kind, *arguments):
    def method(*_, **__):
        raise kind(*arguments)

    return method


def test_an_address_stays_one(run):
    assert str(run) == os.fspath(run) == "s3://bucket/run"
    assert [str(each) for each in (run / "a" / "b", run.parent, run.absolute(), run.resolve())] == [
        "s3://bucket/run/a/b",
        "s3://bucket",
        "s3://bucket/run",
        "s3://bucket/run",
    ]
    # A `Path` loses a slash; it must not become a folder "s3:".
    for same in (Path("s3://bucket/run"), "s3://bucket/run/", run, "S3://bucket/run"):
        assert files.path_of(same) == run
        assert type(files.path_of(same)) is buckets.Address
    assert run.with_name("other").name == "other"
    assert (run / "x.json").suffix == ".json"
    assert pickle.loads(pickle.dumps(run)) == run
    assert files.same_path("gs://b/data", "gs://b/data/")
    assert not files.same_path("gs://b/data", "s3://b/data")


def test_what_would_become_a_local_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (Path("s3://bucket/a"), Path("gs:/bucket/a").absolute()):
        for write in (files.write_text, files.append_text):
            with pytest.raises(WriteError, match="an address, taken for a path on this machine"):
                write(path, "text")
        with pytest.raises(InputError, match=r"--out .* cannot be created"):
            files.create_folder(path, "--out")
    assert list(tmp_path.iterdir()) == []


def test_nothing_of_epath_is_used_that_is_not_replaced(run):
    for unused in (lambda: run.rename("s3://bucket/other"), lambda: list(run.walk()), lambda: run.copy("x")):
        with pytest.raises(NotImplementedError, match="s3://bucket/run"):
            unused()


def test_objects_and_folders(run):
    assert not run.exists()
    assert not (run / "checkpoints").is_dir()
    run.mkdir(parents=True, exist_ok=True)
    files.write_text(run / "a.json", "é\n")
    files.write_bytes(run / "report" / "b.bin", b"12345")
    files.write_npz(run / "report" / "c.npz", x=np.arange(3))
    assert run.is_dir()
    assert not run.is_file()
    assert (run / "a.json").is_file()
    assert (run / "a.json").read_text(encoding="utf-8") == "é\n"
    assert files.read_bytes("s3://bucket/run/report/b.bin", 2) == b"12"
    with (run / "report" / "c.npz").open("rb") as file, np.load(file) as arrays:
        np.testing.assert_array_equal(arrays["x"], np.arange(3))
    assert (run / "report" / "b.bin").stat().st_size == 5
    assert sorted(child.name for child in run.iterdir()) == ["a.json", "report"]
    assert run.entries() == {"a.json": False, "report": True}
    assert [str(path) for path in run.glob("*.json")] == ["s3://bucket/run/a.json"]
    assert list((run / "nowhere").glob("*")) == []
    assert run.files() == ["a.json", "report/b.bin", "report/c.npz"]
    (run / "a.json").unlink()
    (run / "a.json").unlink(missing_ok=True)
    with pytest.raises(FileNotFoundError):
        (run / "a.json").unlink()
    with pytest.raises(FileNotFoundError):
        (run / "a.json").read_bytes()
    (run / "report").rmtree()
    assert not run.exists()


def test_text_is_appended_and_put_now_and_then(run, monkeypatch):
    monkeypatch.setattr(files, "SECONDS_BETWEEN_PUTS", 3600)
    path = run / "metrics.jsonl"
    for line in ("first\n", "second\n", "third\n"):
        files.append_text(path, line)
    assert path.read_text() == "first\n"
    files.flush(path)
    assert path.read_text() == "first\nsecond\nthird\n"
    files.append_text(path, "fourth\n")
    broken(monkeypatch, pipe_file=refuse(OSError, errno.EIO, "gone"))
    with pytest.raises(WriteError, match=r"metrics.jsonl cannot be written \(gone\)"):
        files.flush(path)
    monkeypatch.undo()
    monkeypatch.setattr(buckets, "filesystem", lambda scheme: fsspec.filesystem("memory"))
    files.flush(path)
    assert path.read_text().endswith("fourth\n")
    files.write_text(path, "anew\n")
    files.append_text(path, "more\n")
    files.flush(path)
    assert path.read_text() == "anew\nmore\n"
    files.flush(run / "never appended to")
    assert run.files() == ["metrics.jsonl"]


def test_a_log_in_a_bucket_is_cut_to_the_checkpoint(run):
    path = run / "metrics.jsonl"
    writer = JsonlWriter(path, 0)
    for step in (1, 2, 3):
        writer.write_scalars(step, {"loss": 0.5})
    writer.close()
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    writer = JsonlWriter(path, 2)
    writer.write_scalars(3, {"loss": 0.25})
    writer.flush()
    assert path.read_text().splitlines() == [
        '{"step": 1, "loss": 0.5}',
        '{"step": 2, "loss": 0.5}',
        '{"step": 3, "loss": 0.25}',
    ]


class ClientError(Exception):
    """As botocore's, which is no OSError."""


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (PermissionError(errno.EACCES, "Forbidden"), ["access denied: Forbidden", "rights or credentials"]),
        (OSError("An error occurred (403)"), ["access denied", "403"]),
        (OSError(errno.EIO, "two\nlines"), ["two lines", "check the network"]),
        (TimeoutError(), ["TimeoutError", "check the network"]),
    ],
)
def test_what_a_store_raises_is_one_line(run, monkeypatch, error, words):
    broken(monkeypatch, cat_file=refuse(type(error), *error.args), info=refuse(type(error), *error.args))
    with pytest.raises(BucketError) as raised:
        (run / "x").read_bytes()
    assert isinstance(raised.value, RunError)
    message = str(raised.value)
    assert message.startswith("s3://bucket/run/x cannot be used (")
    assert "\n" not in message
    for word in words:
        assert word in message
    again = pickle.loads(pickle.dumps(raised.value))  # as it comes from a worker process
    assert str(again) == message
    with pytest.raises(InputError) as refused:
        files.place("s3://bucket/run", "--workdir", bucket=True)
    assert str(refused.value).startswith("--workdir: s3://bucket/run cannot be used (")


def test_errors_of_the_packages_are_translated(run, monkeypatch):
    monkeypatch.setattr(buckets, "_errors", lambda scheme: (OSError, ClientError))
    broken(monkeypatch, ls=refuse(ClientError, "no such host"))
    with pytest.raises(BucketError, match="no such host"):
        list(run.iterdir())
    broken(monkeypatch, ls=refuse(ZeroDivisionError))
    with pytest.raises(ZeroDivisionError):
        list(run.iterdir())


def test_a_bucket_that_does_not_exist(run):
    with pytest.raises(
        InputError, match="--workdir: bucket s3://other does not exist; create it, or correct"
    ):
        files.place("s3://other/run", "--workdir", bucket=True)
    with pytest.raises(InputError, match="s3:// names no bucket; write s3://bucket/folder"):
        files.place("s3://", "--workdir", bucket=True)


@pytest.mark.parametrize(("scheme", "package", "extra"), [("gs", "gcsfs", "gcs"), ("s3", "s3fs", "s3")])
def test_a_package_that_is_missing(monkeypatch, scheme, package, extra):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(InputError) as error:
        buckets.filesystem.__wrapped__(scheme)
    assert str(error.value) == f"{scheme}:// needs the package {package}; pip install 'cfmlc_jax[{extra}]'"


def save(checkpoints_, step):
    checkpoints_.save(
        step,
        model={"w": jnp.full((2, 3), step, jnp.float32)},
        training={"step": jnp.int32(step)},
        meta={"config": {}, "class_names": ["a"], "num_classes": 1, "best": {}, "finished": False},
    )
    checkpoints_.wait()


def restored(checkpoints_, warnings):
    import jax

    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    model = {"w": jax.ShapeDtypeStruct((2, 3), jnp.float32, sharding=device)}
    training = {"step": jax.ShapeDtypeStruct((), jnp.int32, sharding=device)}
    return checkpoints_.restore_latest(
        model=model, training=training, check=lambda path, meta: None, warn=warnings.append
    )


def test_checkpoints(run, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    folder = run / "checkpoints"
    kept = checkpoints.Checkpoints(folder)
    for step in (1, 2, 3, 4):
        save(kept, step)
        kept.rank(step, -abs(step - 2), {"best": {}, "finished": step == 4})
    assert sorted(folder.entries()) == ["2", "3", "4"]  # the best and the latest two
    kept.close()
    # A save that was killed: without its mark it neither counts nor stays.
    files.write_text(folder / "9" / "model" / "manifest.ocdbt", "half")
    assert checkpoints.complete_steps(folder) == [2, 3, 4]
    assert checkpoints.find(run) == folder / "2"
    assert checkpoints.read_meta(folder / "4")["class_names"] == ["a"]
    kept = checkpoints.Checkpoints(folder)
    assert sorted(folder.entries()) == ["2", "3", "4"]
    warnings = []
    model, training, meta = restored(kept, warnings)
    np.testing.assert_array_equal(model["w"], np.full((2, 3), 4))
    assert (int(training["step"]), meta["finished"], warnings) == (4, True, [])
    # A damaged one is set aside.
    data = next(name for name in (folder / "4").files() if name.startswith("model/d/"))
    files.write_bytes(folder / "4" / data, b"damaged")
    model, training, meta = restored(kept, warnings)
    assert int(training["step"]) == 3
    assert "checkpoint 4 is damaged" in warnings[0]
    assert sorted(folder.entries()) == ["2", "3"]
    assert sorted((run / "damaged").entries()) == ["4"]
    assert list(tmp_path.iterdir()) == []  # no local copy stays
    with pytest.raises(InputError, match="checkpoint s3://bucket/run/checkpoints/7 is gone"):
        checkpoints.read_meta(folder / "7")


def test_the_local_copy_of_a_checkpoint_is_not_synced(run, tmp_path, monkeypatch):
    """It is removed once it is in the bucket."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kept = checkpoints.Checkpoints(run / "checkpoints")
    monkeypatch.setattr(files, "sync", refuse(AssertionError, "synced"))
    save(kept, 1)
    assert int(restored(kept, [])[1]["step"]) == 1
    kept.close()
    assert (run / "checkpoints" / "1" / digests.FILE).is_file()


def test_a_killed_first_save_is_no_checkpoint(run, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    files.write_text(run / "checkpoints" / "9" / "model" / "manifest.ocdbt", "half")
    assert not workdir.has_checkpoints(run)
    kept = checkpoints.Checkpoints(run / "checkpoints")
    save(kept, 9)
    kept.close()
    assert workdir.has_checkpoints(run)


def test_a_bucket_that_vanishes_before_a_run_resumes(run, monkeypatch):
    files.write_text(run / "config.json", "{}")
    broken(monkeypatch, cat_file=refuse(OSError, errno.EIO, "connection refused"))
    with pytest.raises(BucketError, match=r"config.json cannot be used \(connection refused\)"):
        finetune.resumed(configs.default(), run)


def test_a_bucket_that_vanishes_during_a_save(run, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    kept = checkpoints.Checkpoints(run / "checkpoints")
    save(kept, 1)
    broken(monkeypatch, put=refuse(OSError, errno.EIO, "connection refused"))
    with pytest.raises(
        WriteError, match=r"s3://bucket/run/checkpoints/2 cannot be written \(connection refused\)"
    ):
        save(kept, 2)
    assert kept.latest_step() == 1
    kept.close()
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_outside_a_run(run):
    model = {"variables": {"w": jnp.ones(3)}}
    checkpoints.write(
        run / "converted", model=model, meta={"config": {}, "class_names": None, "num_classes": 1}
    )
    found = checkpoints.find(run / "converted")
    np.testing.assert_array_equal(checkpoints.read_model(found, model)["variables"]["w"], np.ones(3))
    assert checkpoints.model_shapes(found)["variables"]["w"].shape == (3,)
    with pytest.raises(InputError, match="s3://bucket/run/converted exists already"):
        checkpoints.write(run / "converted", model=model, meta={})
    with pytest.raises(InputError, match="s3://bucket/other is not a checkpoint"):
        checkpoints.find(run.parent / "other")


def test_copies_of_killed_processes_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with buckets.local_folder() as used:
        killed = tmp_path / f"{buckets._STAGING}killed"
        killed.mkdir()
        (killed / ".lock").write_text("")
        with buckets.local_folder() as other:
            assert {path.name for path in tmp_path.iterdir()} == {used.name, other.name}
    assert list(tmp_path.iterdir()) == []


def take(folder):
    with lock.held(folder, "training"):
        return json.loads((folder / lock.FILE).read_bytes())


def sign(folder, **changes):
    holder = lock._self("training") | {"token": "other", "beat": time.time()}
    (folder / lock.FILE).replace_by(lock._as_json(holder | changes))


def test_the_lock(run, monkeypatch):
    monkeypatch.setattr(lock, "SECONDS_BETWEEN_TRIES", 0)
    with lock.held(run, "training"), pytest.raises(lock.InUseError) as error:
        take(run)
    assert str(error.value).startswith(
        f"s3://bucket/run is in use by process {os.getpid()} on {socket.gethostname()} (training since"
    )
    assert take(run)["pid"] == os.getpid()
    assert not run.exists()
    # Of a process of this host that was killed.
    sign(run, started=1)
    assert take(run)["pid"] == os.getpid()
    (run / lock.FILE).replace_by(b"{")
    assert take(run)["pid"] == os.getpid()


def test_a_holder_elsewhere(run, monkeypatch):
    monkeypatch.setattr(lock, "SECONDS_BETWEEN_TRIES", 0)
    sign(run, host="elsewhere", pid=7, since="then", beat=time.time() - 100)
    with pytest.raises(lock.InUseError) as error:
        take(run)
    line = str(error.value)
    assert line.startswith(
        "s3://bucket/run is in use by process 7 on elsewhere (training since then), heard of 10"
    )
    assert "counts as ended after 180 s of silence, or remove s3://bucket/run/.lock" in line
    assert "\n" not in line
    monkeypatch.setattr(lock, "SECONDS_BETWEEN_BEATS", 0.1)
    sign(run, host="elsewhere", beat=time.time() - 200)
    assert take(run)["host"] == socket.gethostname()
    # Its clock is wrong, but it lives.
    sign(run, host="elsewhere", beat=1)
    beating = threading.Timer(0.1, sign, [run], {"host": "elsewhere", "beat": 2})
    beating.start()
    with pytest.raises(lock.InUseError, match="on elsewhere"):
        take(run)
    beating.join()


def test_a_holder_on_this_host_which_does_not_list_its_processes(run, monkeypatch):
    monkeypatch.setattr(lock, "SECONDS_BETWEEN_TRIES", 0)
    monkeypatch.setattr(lock, "SECONDS_BETWEEN_BEATS", 0.1)
    monkeypatch.setattr(lock, "_started", lambda pid: None)
    with lock.held(run, "training"), pytest.raises(lock.InUseError, match="heard of 0 s ago"):
        take(run)
    sign(run, beat=time.time() - 200)
    assert take(run)["started"] is None


def test_a_holder_tells_that_it_lives_and_ends_when_another_took_over(run, monkeypatch, capsys):
    ended = []
    monkeypatch.setattr(lock, "SECONDS_BETWEEN_BEATS", 0.01)
    monkeypatch.setattr(cli, "end", ended.append)
    with lock.held(run, "training"):
        first = json.loads((run / lock.FILE).read_bytes())["beat"]
        while json.loads((run / lock.FILE).read_bytes())["beat"] == first:
            time.sleep(0.01)
        sign(run, host="elsewhere", pid=7)
        while not ended:
            time.sleep(0.01)
    assert ended[0] == 1
    assert "error: s3://bucket/run was taken over by process 7 on elsewhere" in capsys.readouterr().err


def picture(shade):
    import io

    data = io.BytesIO()
    Image.new("RGB", (8, 8), (shade, 0, 0)).save(data, "PNG")
    return data.getvalue()


def test_a_table_in_a_bucket(run):
    root = run.parent / "data"
    for split in ("train", "val"):
        for number in range(3):
            files.write_bytes(root / "photos" / f"{split}{number}.png", picture(number))
        lines = [f"photos/{split}{number}.png,{'ab'[number % 2]}\n" for number in range(3)]
        files.write_text(root / f"{split}.csv", "".join(lines))
    source = pickle.loads(pickle.dumps(Table(str(root), "train")))
    assert source[2]["image"] == picture(2)
    assert source.class_names == ("a", "b")
    assert source.pictures()[0] == "s3://bucket/data/photos/train0.png"
    (root / "photos" / "train1.png").unlink()
    with pytest.raises(InputError, match=r"train1.png: cannot read the image \(No such file"):
        source[1]
    with pytest.raises(InputError, match=r"photos/train1\.png"):
        Table(str(root), "train")


def test_a_bucket_that_vanishes_is_no_broken_image(run, monkeypatch):
    """With data.on_error=skip an `InputError` would leave out every image."""
    files.write_bytes(run / "a.png", picture(1))
    files.write_text(run / "train.csv", "a.png,a\n")
    source = Table(str(run), "train")
    broken(monkeypatch, cat_file=refuse(OSError, errno.EIO, "connection refused"))
    with pytest.raises(BucketError, match="connection refused"):
        source[0]


def test_annotations_in_a_bucket_are_cached_by_their_tag(run, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(annotations, "SMALLEST", 0)
    document = {
        "categories": [{"id": 1, "name": "cat"}],
        "images": [{"id": 5, "file_name": "5.png", "width": 8, "height": 8}],
        "annotations": [{"image_id": 5, "category_id": 1, "bbox": [0, 0, 4, 4]}],
    }
    files.write_text(run / "annotations" / "instances_train2014.json", json.dumps(document))
    files.write_bytes(run / "train2014" / "5.png", picture(1))
    first = Coco(str(run), "train")
    assert first.ids == ["5"]
    assert first[0]["image"] == picture(1)
    cached = list(tmp_path.rglob("*.npz"))
    assert len(cached) == 1
    Coco(str(run), "train")
    assert list(tmp_path.rglob("*.npz")) == cached
    info = fsspec.filesystem("memory").info
    broken(monkeypatch, info=lambda path, **options: info(path, **options) | {"ETag": "another"})
    Coco(str(run), "train")
    assert list(tmp_path.rglob("*.npz")) != cached


def test_own_images_in_a_bucket(run, tmp_path, capsys):
    document = {
        "images": [{"id": 1, "file_name": "a.png"}, {"id": 2, "file_name": "b.png"}],
        "annotations": [{"image_id": 1, "category_id": 1}],
        "categories": [{"id": 1, "name": "dog"}],
    }
    files.write_text(run / "all.json", json.dumps(document))
    files.write_text(run / "list.txt", "b.png\n1\n")
    files.write_text(run / "train.csv", "images/a.png,dog\nimages/b.png,cat\n")
    for number, name in enumerate(("a.png", "b.png")):
        files.write_bytes(run / "images" / name, picture(number))
    source = Instances(str(run), "train", json="all.json", images="images", listed="list.txt")
    assert source.labels.tolist() == [[1], [0]]
    assert source[1]["image"] == picture(1)
    assert check.main([str(run), f"--output={tmp_path / 'out'}", "--rare=1", "--smallest=1"]) == 0
    assert "2 images in train, 2 classes, 0 errors, 0 warnings" in capsys.readouterr().out


def test_regions_in_a_bucket(run, tmp_path, monkeypatch):
    """Opening them reads no features; an image's regions are read when they are asked for, and no others."""
    rng = np.random.default_rng(0)
    writer = Writer(
        tmp_path / "r", shape=(2000,), categories=[Category(1, "a", "r")], shard_regions=4, dtype="float32"
    )
    for image, count in enumerate((3, 0, 2, 4)):
        writer.add(
            image, rng.normal(size=(count, 1, 2000)), rng.uniform(size=(count, 4)), np.zeros((count, 1))
        )
    writer.close()
    for path in (tmp_path / "r").iterdir():
        (run / path.name).replace_by(path.read_bytes())
    requested = []
    read = fsspec.filesystem("memory").cat_file

    def counted(*arguments, **options):
        content = read(*arguments, **options)
        requested.append(len(content))
        return content

    broken(monkeypatch, cat_file=counted)
    records, local = RegionRecords(run), RegionRecords(tmp_path / "r")
    assert records.content == local.content
    assert sum(requested) < 40_000  # of 72,000 bytes of features
    requested.clear()
    for i in range(4):
        for one, other in zip(dataclasses.astuple(records[i]), dataclasses.astuple(local[i]), strict=True):
            np.testing.assert_array_equal(one, other)
    assert sum(requested) == 9 * (2000 + 4 + 1) * 4
    np.testing.assert_array_equal(records.class_counts(), local.class_counts())
    broken(monkeypatch, cat_file=refuse(PermissionError, "no"))
    with pytest.raises(BucketError, match="access denied"):
        records[0]
    broken(monkeypatch, cat_file=read)
    (run / "shard-00000.features.npy").replace_by(
        (tmp_path / "r" / "shard-00000.features.npy").read_bytes()[:-1]
    )
    with pytest.raises(
        InputError,
        match=r"s3://bucket/run/shard-00000.features.npy cannot be read \(.* bytes are not an array",
    ):
        RegionRecords(run)


def test_sources_that_read_no_buckets(run, monkeypatch):
    with pytest.raises(InputError) as error:
        build.place("cifar10_lt", "s3://bucket/run")
    assert str(error.value).startswith(
        "data source cifar10_lt cannot be read from s3://bucket/run: those that can are coco"
    )
    with pytest.raises(InputError, match="data root s3://bucket/run is not a folder"):
        build.data_root("coco", "s3://bucket/run")
    monkeypatch.setenv("CFMLC_DATA", "gs://bucket/data")
    assert str(build.place("coco")) == "gs://bucket/data/coco"


def test_what_cannot_be_in_a_bucket(run, command):
    tiny = Path(__file__).parent / "configs" / "tiny.py"
    for name, words in (("tensorboard", "event files grow"), ("wandb", "set WANDB_DIR to a local folder")):
        # Before anything is read or built.
        code, out, err = command(
            f"--config={tiny}", f"--workdir={run}", f"--config.report.writers=('{name}',)"
        )
        assert code == 1
        assert re.fullmatch(f"error: .* has '{name}', whose .*{words}.*\n", err)
        assert out == ""
    configuration = Path(__file__).parent / "configs" / "cgn_tiny.py"
    code, _, err = command(f"--config={configuration}", f"--workdir={run}")
    assert code == 1
    assert err.startswith("error: --workdir s3://bucket/run cannot be in a bucket for a generator")
    for flag in (
        "--compilation_cache=gs://bucket/compiled",
        "--config.loss.features_from=gs://bucket/vgg.pth",
    ):
        code, _, err = command(f"--config={configuration}", flag)
        assert code == 1
        assert "'gs://bucket/" in err
        assert err.count("\n") == 1
    assert not run.exists()


@pytest.mark.parametrize(
    ("main", "arguments", "words"),
    [
        (torch_weights.main, ["s3://bucket/w.pth", "out"], "IN 's3://bucket/w.pth' is an address"),
        (torch_weights.main, ["run", "gs://b/w.pth", "--to_torch"], "OUT 'gs://b/w.pth' is an address"),
        (torch_weights.main, ["w.pth", "az://b/w"], "'az://b/w' is an address"),
        (cgn.main, ["export", "--records=a", "--out=s3://b/c"], "'s3://b/c' is an address"),
        (cgn.main, ["sheets", "--checkpoint=a", "--out=gs://b/c"], "'gs://b/c' is an address"),
        (cgn.main, ["cues", "--checkpoint=a", "--out=hf://b/c"], "'hf://b/c' is an address"),
        (predict.main, ["s3://b/a.jpg", "--checkpoint=a"], "'s3://b/a.jpg' is an address; copy the images"),
        (predict.main, ["a.jpg", "--checkpoint=a", "--output=http://b/c"], "'http://b/c' is an address"),
        (report.main, ["hdfs://b/run"], "WORKDIR 'hdfs://b/run' is an address"),
    ],
)
def test_commands_refuse_addresses_where_they_cannot_use_them(
    main, arguments, words, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    message = capsys.readouterr().err
    assert words in message
    assert message.count("\n") == 1
    assert list(tmp_path.iterdir()) == []
