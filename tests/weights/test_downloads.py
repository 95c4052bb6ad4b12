"""Downloads into the cache: broken, resumed, refused, damaged, offline, and by several processes at once."""

import hashlib
import os
import threading

import numpy as np
import pytest

from cfmlc_jax.errors import InputError, RunError, WriteError
from cfmlc_jax.weights import cache, download, fetch, table

DATA = np.random.default_rng(0).bytes(300_000)
NAME = "torchvision:resnet18.IMAGENET1K_V1"
PATH = "/download.pytorch.org/models/resnet18-f37072fd.pth"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Data of 300 kB whose digest the table knows, and no pauses between tries."""
    entry = table.TABLE[NAME]._replace(sha256=hashlib.sha256(DATA).hexdigest()[:8])
    monkeypatch.setitem(table.TABLE, NAME, entry)
    monkeypatch.setattr(download, "_FIRST_PAUSE_SECONDS", 0.0)


def bring(lines=None, name=NAME):
    return fetch.fetch(fetch.named(name), (lines if lines is not None else []).append)


def test_a_file_is_downloaded_once(server, cache_folder):
    server.files[PATH] = DATA
    lines = []
    path = bring(lines)
    assert path == cache_folder / "torchvision" / "resnet18-f37072fd.pth"
    assert path.read_bytes() == DATA
    assert lines == [f"downloading {server.url}{PATH} to {path}"]
    assert bring() == path
    assert len(server.asked(PATH)) == 1
    assert cache.recorded(path) == hashlib.sha256(DATA).hexdigest()
    left = {child.name for child in path.parent.iterdir()}
    assert left == {path.name, f"{path.name}.sha256", f".{path.name}.lock"}


def test_a_broken_transfer_goes_on_where_it_was(server):
    server.files[PATH] = DATA
    server.broken[PATH] = [100_000, 50_000]
    lines = []
    assert bring(lines).read_bytes() == DATA
    assert [headers.get("Range") for headers in server.asked(PATH)] == [
        None,
        "bytes=100000-",
        "bytes=150000-",
    ]
    assert f"{NAME}: the transfer broke off after 150,000 of 300,000 bytes; trying again in 0 s" in lines


def test_what_a_killed_process_left_is_continued(server, cache_folder):
    server.files[PATH] = DATA
    part = cache_folder / "torchvision" / "resnet18-f37072fd.pth.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(DATA[:200_000])
    assert bring().read_bytes() == DATA
    assert [headers["Range"] for headers in server.asked(PATH)] == ["bytes=200000-"]
    assert not part.exists()


def test_a_complete_part_needs_no_transfer(server, cache_folder):
    server.files[PATH] = DATA
    part = cache_folder / "torchvision" / "resnet18-f37072fd.pth.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(DATA)
    assert bring().read_bytes() == DATA
    part.write_bytes(DATA + b"more")  # of another file
    bring().unlink()
    assert bring().read_bytes() == DATA


def test_a_server_may_ignore_ranges(server):
    server.files[PATH] = DATA
    server.broken[PATH] = [100_000]
    server.ranges = False
    assert bring().read_bytes() == DATA
    assert [headers.get("Range") for headers in server.asked(PATH)] == [None, "bytes=100000-"]


def test_a_file_that_changed_meanwhile_is_downloaded_anew(server):
    server.files[PATH] = DATA[::-1]
    server.broken[PATH] = [100_000] + [0] * download.TRIES
    with pytest.raises(RunError, match="bytes are kept in"):
        bring()
    server.files[PATH], server.broken[PATH] = DATA, []
    assert bring().read_bytes() == DATA
    assert server.asked(PATH)[-1]["Range"] == "bytes=100000-"


def test_a_transfer_that_breaks_off_each_time_is_told(server, cache_folder):
    server.files[PATH] = DATA
    server.broken[PATH] = [100_000] + [0] * download.TRIES
    with pytest.raises(RunError) as error:
        bring()
    path = cache_folder / "torchvision" / "resnet18-f37072fd.pth"
    message = str(error.value)
    assert "the transfer broke off after 100,000 of 300,000 bytes" in message
    assert f"100,000 bytes are kept in {path}.part: run the same command again to go on from there" in message
    assert f"from https:/{PATH} to {path}" in message
    assert not path.exists()


def test_a_wrong_digest_is_set_aside(server, cache_folder):
    server.files[PATH] = DATA[:-1] + b"?"
    path = cache_folder / "torchvision" / "resnet18-f37072fd.pth"
    for aside in (f"{path.name}.wrong-digest", f"{path.name}.wrong-digest.2"):
        with pytest.raises(
            InputError, match=f"has SHA-256 .*, not .*: .* renamed to {aside} and is not used"
        ):
            bring()
        assert not path.exists()
        assert (path.parent / aside).read_bytes() == server.files[PATH]
    server.files[PATH] = DATA
    assert bring() == path


def test_a_file_that_a_person_brought_is_checked_too(server, cache_folder):
    path = cache_folder / "torchvision" / "resnet18-f37072fd.pth"
    path.parent.mkdir(parents=True)
    path.write_bytes(DATA)
    assert bring() == path
    path.write_bytes(b"an error page")
    with pytest.raises(InputError, match="damaged or another file"):
        bring()
    assert server.requests == []


def test_without_a_published_digest_the_own_one_counts(server, cache_folder):
    name = "miil:tresnet_l_448"
    server.files["/miil-public-eu.oss-eu-central-1.aliyuncs.com/model-zoo/tresnet/tresnet_l_448.pth"] = DATA
    path = bring(name=name)
    assert bring(name=name) == path
    path.write_bytes(b"damaged")
    with pytest.raises(InputError, match="has SHA-256"):
        bring(name=name)


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (
            401,
            InputError,
            r"asks for a login \(HTTP 401\); download it in a browser to .*resnet18-f37072fd.pth",
        ),
        (403, InputError, r"asks for a login \(HTTP 403\)"),
        (404, InputError, r"is not there \(HTTP 404\): .* put it at .*resnet18-f37072fd.pth"),
        (
            503,
            RunError,
            r"cannot be reached \(the server answers 503 .*or bring the file yourself, from https://",
        ),
        (418, RunError, r"the server answers 418 .*; try later, or bring the file yourself"),
    ],
)
def test_a_refusal_is_told(server, status, kind, words):
    server.status[PATH] = (status, {})
    with pytest.raises(kind, match=words):
        bring()


def test_offline_is_told_with_address_and_place(monkeypatch, cache_folder):
    monkeypatch.setenv("CFMLC_MIRROR", "http://127.0.0.1:9")
    path = cache_folder / "torchvision" / "resnet18-f37072fd.pth"
    with pytest.raises(RunError) as error:
        bring()
    assert str(error.value) == (
        f"http://127.0.0.1:9{PATH} cannot be reached (Connection refused); check the network, or bring the file "
        f"yourself, from https:/{PATH} to {path}"
    )
    monkeypatch.setenv("CFMLC_MIRROR", "somewhere")
    with pytest.raises(InputError, match=r"is not a URL .*; check \$CFMLC_MIRROR"):
        bring()


def test_a_file_for_people_says_where_it_is(cache_folder):
    with pytest.raises(InputError) as error:
        bring(name="mlc_pat:q2l_tresnet_l_v2")
    assert "download it in a browser from https://drive.google.com/" in str(error.value)
    assert str(cache_folder / "mlc_pat" / "q2l_tresnet_l_v2.pth.tar") in str(error.value)


def test_a_cache_that_cannot_be_written(server, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("CFMLC_CACHE", str(tmp_path / "file"))
    with pytest.raises(
        InputError, match=r"the cache .* cannot be written \(Not a directory\); set \$CFMLC_CACHE"
    ):
        bring()


def test_a_full_disk(server, small_disk, monkeypatch):
    server.files[PATH] = DATA + DATA
    monkeypatch.setenv("CFMLC_CACHE", str(small_disk))
    with pytest.raises(WriteError, match="No space left on device"):
        bring()


def test_of_several_processes_one_downloads(server):
    server.files[PATH] = DATA
    lines = []
    path = fetch.named(NAME).path
    cache.prepare(path)
    with cache.locked(path, lines.append) as held:
        assert held
        thread = threading.Thread(target=bring, args=[lines])
        thread.start()
        while not lines:
            thread.join(0.01)
        assert lines == [f"waiting for another process, which downloads {path}"]
        path.write_bytes(DATA)
    thread.join()
    assert server.requests == []


def test_without_locks_a_process_writes_its_own_part(server, monkeypatch, cache_folder):
    def refuse(*_):
        raise OSError

    monkeypatch.setattr(cache.fcntl, "flock", refuse)
    server.files[PATH] = DATA
    server.broken[PATH] = [1000] + [0] * download.TRIES
    with pytest.raises(RunError, match=rf"resnet18-f37072fd\.pth\.{os.getpid()}\.part"):
        bring()
    assert bring().read_bytes() == DATA


def test_progress_is_shown(server, monkeypatch, capsys):
    server.files[PATH] = DATA
    monkeypatch.setattr(download.sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(download, "_CHUNK", 100_000)
    monkeypatch.setattr(download.time, "monotonic", iter(np.arange(0, 100, 0.5)).__next__)
    bring()
    assert f"\r\033[K{NAME}: 0.2 of 0.3 MB, 0.2 MB/s\r" in capsys.readouterr().err
