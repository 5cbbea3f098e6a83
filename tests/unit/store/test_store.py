"""The store: whole or absent, by content, shared by processes, on a disk or an object store."""

import contextlib
import errno
import multiprocessing
import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
from support.records import stage_record

from lathe_api.manifest import Blob
from lathe_optimizers import files
from lathe_optimizers.errors import InputError, StoreError
from lathe_optimizers.store import Store


@pytest.fixture(params=["local", "file-uri", "object-store"])
def store(request, tmp_path):
    uri = {"local": str(tmp_path / "s"), "file-uri": f"file://{tmp_path}/s", "object-store": f"memory://{tmp_path}/s"}
    return Store(uri[request.param], cache=tmp_path / "cache")


def a_file(tmp_path, content=b"weights"):
    path = tmp_path / "file"
    path.write_bytes(content)
    return path


def test_a_blob_comes_back_byte_for_byte(store, tmp_path):
    blob = store.put(a_file(tmp_path))
    assert store.get(blob).read_bytes() == b"weights"
    assert blob.size == 7


def test_the_same_content_is_kept_once(tmp_path):
    store = Store(str(tmp_path / "s"))
    assert store.put(a_file(tmp_path)) == store.put(a_file(tmp_path))
    assert len([p for p in (tmp_path / "s/blobs").rglob("*") if p.is_file()]) == 1


def test_a_missing_blob_says_what_to_do(store):
    with pytest.raises(StoreError, match=r"missing or damaged\. Run again"):
        store.get(Blob(digest="sha256:" + "0" * 64, size=1))


def test_a_damaged_blob_is_not_handed_out_and_heals_when_put_again(tmp_path):
    store = Store(str(tmp_path / "s"))
    source = a_file(tmp_path)
    blob = store.put(source)
    stored = store.get(blob)
    stored.chmod(0o644)
    stored.write_bytes(b"WEIGHTS")
    assert store.find(blob) is None
    store.put(source)
    assert store.get(blob).read_bytes() == b"weights"


def test_a_record_comes_back_only_while_its_blobs_are_whole(store, tmp_path):
    blob = store.put(a_file(tmp_path))
    record = stage_record(blob)
    store.publish(record)
    assert store.record(record.key) == record
    lost = stage_record(Blob(digest="sha256:" + "1" * 64, size=3), key="sha256:" + "2" * 64)
    store.publish(lost)
    assert store.record(lost.key) is None


def test_an_unknown_key_has_no_record(store):
    assert store.record("sha256:" + "3" * 64) is None


@pytest.mark.parametrize("text", [b"{", b"{}", b'{"schema": "lathe.dev/stage/v2"}'], ids=["torn", "empty", "other"])
def test_an_unreadable_record_counts_as_none(store, text):
    key = "4" * 64
    store.place.write(f"stages/{key}/stage.json", text)
    assert store.record(f"sha256:{key}") is None


def test_publishing_drops_the_checkpoints(store, tmp_path):
    record = stage_record(store.put(a_file(tmp_path)))
    slots = store.checkpoints(record.key)
    slots.save("train", b"epoch 3")
    assert slots.load("train") == b"epoch 3"
    assert slots.exist()
    store.publish(record)
    assert slots.load("train") is None
    assert not slots.exist()


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path):
    path = tmp_path / "out" / "file"
    files.write_file(path, b"old")

    with contextlib.suppress(InterruptedError), files.written_aside(path) as stream:
        stream.write(b"new")
        raise InterruptedError
    assert path.read_bytes() == b"old"
    assert [p.name for p in path.parent.iterdir()] == ["file"]


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 256 KiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", folder], check=False).returncode:
        pytest.skip("mounting a small file system needs privileges that this process lacks")
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_is_named_and_leaves_nothing(small_disk, tmp_path):
    store = Store(str(small_disk / "s"))
    with pytest.raises(StoreError, match=r"no space left.*--store"):
        store.put(a_file(tmp_path, os.urandom(1 << 20)))
    assert not [p for p in small_disk.rglob("*") if p.is_file()]
    assert store.put(a_file(tmp_path, b"fits")).size == 4


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS])
def test_operating_system_errors_become_store_errors(code):
    with pytest.raises(StoreError, match="--store"), files.explained("somewhere"):
        raise OSError(code, os.strerror(code))


def _hold(uri: str, key: str, log: Path, name: str) -> None:
    with Store(uri).lock(key, lambda: None):
        with log.open("a") as stream:
            stream.write(f"{name} in\n")
        time.sleep(0.05)
        with log.open("a") as stream:
            stream.write(f"{name} out\n")


def test_only_one_process_holds_a_stage(tmp_path):
    key, log = "sha256:" + "5" * 64, tmp_path / "log"
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_hold, args=(str(tmp_path / "s"), key, log, n)) for n in "ab"]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    lines = log.read_text().split("\n")[:-1]
    assert [line.split()[1] for line in lines] == ["in", "out", "in", "out"]


def test_a_waiting_process_is_told_before_it_waits(tmp_path):
    store, key, told = Store(str(tmp_path / "s")), "sha256:" + "6" * 64, threading.Event()
    with store.lock(key, told.set):
        assert not told.is_set()
        # flock belongs to the open file, so that a second open in this process waits like another process.
        waiter = threading.Thread(target=lambda: store.lock(key, told.set).__enter__())
        waiter.start()
        assert told.wait(10)
    waiter.join(10)
    assert not waiter.is_alive()


def test_an_unknown_kind_of_store_is_named():
    with pytest.raises(InputError, match=r"--store: nosuch://x cannot be opened"):
        Store("nosuch://x")


def test_replacing_a_folder_keeps_exactly_the_new_one(tmp_path):
    old, new = tmp_path / "out", tmp_path / "new"
    for folder, name in ((old, "a"), (new, "b")):
        folder.mkdir()
        (folder / name).touch()
    files.replace_folder(new, old)
    assert [p.name for p in old.iterdir()] == ["b"]
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
