"""Paths of buckets do what paths of folders do, and say what a bucket refuses."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from bucket_server import Fault, Request

from llm_jax.checkpoints.folder_lock import OWNER, FolderLock
from llm_jax.files import (
    SHARDS,
    check_folder,
    file_sizes,
    local_folder,
    make_folder,
    new_folder,
    remove_tree,
    replacing,
    visible_names,
    write_atomic,
    write_json,
)
from llm_jax.storage import bucket_path
from llm_jax.storage.paths import check_place, is_bucket, path_of
from llm_jax.training.metrics import MetricsWriter, read_metrics
from llm_jax.types import ConfigError, DataError

pytestmark = pytest.mark.process


def name_of(path) -> str:
    return str(path).partition("://")[2].partition("/")[2]


def test_a_path_is_of_the_bucket_that_its_text_names():
    path = path_of("gs://bucket/runs/x")
    assert str(path) == os.fspath(path) == "gs://bucket/runs/x"
    assert is_bucket(path)
    assert str(path / "a" / "b.json") == "gs://bucket/runs/x/a/b.json"
    assert (path.name, str(path.parent), path.with_name("y").name) == ("x", "gs://bucket/runs", "y")
    assert path_of(path) == path
    # What a pathlib.Path of the text has become.
    assert path_of(Path("gs://bucket/runs/x")) == path
    assert pickle.loads(pickle.dumps(path)) == path


def test_folders_of_this_machine_stay_what_they_were():
    assert path_of("runs/x") == Path("runs/x")
    assert type(path_of("/mnt/bucket/x")) is type(Path())
    assert not is_bucket("/mnt/gs/x")


@pytest.mark.parametrize("text", ["gs://", "gs:///", "s3://"])
def test_a_bucket_has_a_name(text):
    with pytest.raises(ConfigError, match="names no bucket; give (gs|s3)://BUCKET/FOLDER"):
        check_place(text)


@pytest.mark.parametrize("text", ["http://a/b", "hf://a/b", "az://a/b", "file:///a"])
def test_other_storage_is_refused_by_its_name(text):
    with pytest.raises(ConfigError, match=f"{text.partition(':')[0]}:// cannot be read or written"):
        path_of(text)


def test_s3_without_its_package_is_refused_by_name(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    bucket_path.check_installed.cache_clear()
    with pytest.raises(ConfigError, match=r"s3:// needs the package s3fs.*llm_jax\[s3\]"):
        path_of("s3://bucket/x")


def test_what_is_written_is_read_and_listed(bucket):
    write_atomic(bucket / "a.txt", b"one")
    write_json(bucket / "deep" / "b.json", {"x": 1})
    assert (bucket / "a.txt").read_text() == "one"
    assert json.loads((bucket / "deep/b.json").read_text()) == {"x": 1}
    assert (bucket / "a.txt").stat().st_size == 3
    assert [p.name for p in bucket.iterdir()] == ["a.txt", "deep"]
    assert file_sizes(bucket) == {"a.txt": 3, "deep/b.json": 12}
    assert [str(p) for p in bucket.glob("*/*.json")] == [f"{bucket}/deep/b.json"]
    assert ((bucket / "deep").is_dir(), (bucket / "a.txt").is_file()) == (True, True)
    assert not (bucket / "none").exists()
    assert not (bucket / "a.tx").exists()
    with (bucket / "a.txt").open("rb") as file:
        assert (file.read(1), file.seek(-1, 2), file.read()) == (b"o", 2, b"e")
    with (bucket / "a.txt").open() as file:
        assert file.read() == "one"
    write_atomic(bucket / "a.txt", b"two")
    assert (bucket / "a.txt").read_bytes() == b"two"
    remove_tree(bucket / "deep")
    (bucket / "a.txt").unlink()
    assert file_sizes(bucket) == {}
    with pytest.raises(FileNotFoundError):
        (bucket / "a.txt").unlink()
    (bucket / "a.txt").unlink(missing_ok=True)


def test_a_file_is_deleted_though_the_answer_was_lost(server, bucket):
    (bucket / "x").write_bytes(b"1")
    lost = Fault(lambda r: r.method == "DELETE", status=503, done=True)
    with server.failing(lost, times=1) as counted:
        (bucket / "x").unlink()
    assert counted[0] == 1 and not (bucket / "x").exists()


def test_of_several_writers_of_a_new_object_one_succeeds(bucket):
    path = bucket / "owner.json"
    path.create(b"first")
    with pytest.raises(FileExistsError):
        path.create(b"second")
    assert path.read_bytes() == b"first"


def test_a_lock_is_held_though_the_answer_to_its_request_was_lost(server, bucket):
    lost = Fault(lambda r: r.uploads and r.name.endswith(OWNER), status=503, done=True)
    with server.failing(lost, times=1) as counted, FolderLock(bucket) as lock:
        lock.check()
        with pytest.raises(ConfigError, match=f"is in use by process {os.getpid()}"):
            FolderLock(bucket)
    assert counted[0] == 1


def test_a_folder_is_checked_made_and_left_as_it_was(bucket):
    assert check_folder(bucket) is None
    make_folder(bucket)
    assert file_sizes(bucket) == {}
    write_json(bucket / "manifest.json", {"format_version": 1})
    assert check_folder(bucket, resumes=(SHARDS,)) is SHARDS
    with pytest.raises(DataError, match=f"out '{bucket}' holds token shards"):
        check_folder(bucket)
    with pytest.raises(DataError, match=r"is a file; choose a folder"):
        check_folder(bucket / "manifest.json")
    with pytest.raises(KeyError), new_folder(bucket):
        write_atomic(bucket / "new" / "x", b"x")
        raise KeyError
    assert visible_names(bucket) == ["manifest.json"]


def test_a_file_that_fails_is_not_there(bucket):
    with pytest.raises(KeyError), replacing(bucket / "x.bin") as local:
        local.write_bytes(b"half")
        raise KeyError
    with pytest.raises(KeyError), local_folder(bucket) as folder:
        (folder / "y").write_bytes(b"half")
        raise KeyError
    assert file_sizes(bucket) == {}
    with replacing(bucket / "x.bin") as local:
        local.write_bytes(b"whole" * 1000)
    assert (bucket / "x.bin").read_bytes() == b"whole" * 1000


def test_a_bucket_that_is_not_there_is_named(server):
    folder = path_of("gs://no-such-bucket/x")
    with pytest.raises(DataError, match=r"cannot be written \(there is no such bucket or object\)"):
        make_folder(folder)
    assert not folder.exists()


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_bucket_is_asked_again(server, bucket, status):
    with server.failing(Fault(lambda r: r.uploads, status=status), times=1) as counted:
        write_atomic(bucket / "x", b"data")
    with server.failing(Fault(lambda r: r.downloads, status=status), times=1) as read:
        assert (bucket / "x").read_bytes() == b"data"
    assert (counted[0], read[0]) == (1, 1)


def test_an_answer_that_is_cut_short_is_asked_for_again(server, bucket):
    data = bytes(range(256)) * 4000
    write_atomic(bucket / "x", data)
    with server.failing(Fault(lambda r: r.downloads, cut=0.5), times=1) as counted:
        assert (bucket / "x").read_bytes() == data
    again_cut = Fault(lambda r: r.downloads, cut=0.3)
    with server.failing(again_cut, times=1) as again, (bucket / "x").open("rb") as file:
        assert file.read() == data
    assert (counted[0], again[0]) == (1, 1)


def test_a_slow_upload_ends(server, bucket):
    with server.failing(Fault(lambda r: r.uploads, delay=1.0)):
        write_atomic(bucket / "x", b"late")
    assert (bucket / "x").read_bytes() == b"late"


def test_a_bucket_without_permission_is_a_named_error(server, bucket):
    with server.failing(Fault(lambda r: True, status=403)):
        with pytest.raises(DataError, match=r"403 Forbidden: .* role Storage Object Admin"):
            write_atomic(bucket / "x", b"x")
        with pytest.raises(PermissionError, match="role Storage Object Admin"):
            (bucket / "x").exists()


def test_records_are_stored_whole(bucket):
    writer = MetricsWriter(bucket, 0)
    writer.write("train", 1, {"loss": 2.0})
    writer.sync(1)
    assert [r["step"] for r in read_metrics(bucket / "metrics.jsonl")] == [1]
    writer.write("train", 2, {"loss": 1.0})
    writer.close()
    again = MetricsWriter(bucket, 1)
    again.close()
    assert [r["step"] for r in read_metrics(bucket / "metrics.jsonl")] == [1]
    assert len(list((bucket / "tensorboard").iterdir())) == 2


def test_one_process_of_a_machine_fetches_an_object(server, bucket):
    write_atomic(bucket / "shard", bytes(100_000))
    code = (
        "import sys\nfrom llm_jax.storage.paths import local_file\n"
        "print(local_file(sys.argv[1]).stat().st_size)"
    )
    words = [sys.executable, "-c", code, str(bucket / "shard")]
    fetches = Fault(lambda r: r.downloads and r.name.endswith("/shard"), delay=1.0)
    with server.failing(fetches) as counted:
        both = [subprocess.Popen(words, stdout=subprocess.PIPE, text=True) for _ in range(2)]
        assert [process.communicate(timeout=120)[0] for process in both] == ["100000\n"] * 2
    assert counted[0] == 1


def test_a_token_that_is_revoked_is_replaced(server, bucket, monkeypatch):
    # In a process of its own, since google.auth reads the variables when it is imported.
    code = (
        "import asyncio, sys, types\nimport gcsfs.retry\n"
        "from llm_jax.storage.paths import path_of\n"
        # gcsfs tries six times with the same token, and waits for 33 s between its tries.
        "sleep = asyncio.sleep\n"
        "gcsfs.retry.asyncio = types.SimpleNamespace(sleep=lambda seconds: sleep(seconds / 100))\n"
        "path = path_of(sys.argv[1])\npath.write_bytes(b'one')\nprint(path.read_text())"
    )
    revoked = []

    def revoke(request: Request) -> bool:
        if request.downloads and not revoked:
            revoked.append(server.issued)
            server.revoke_tokens()
        return False

    monkeypatch.setattr(server, "lifetime", 3600.0)
    with server.failing(Fault(revoke)):
        said = subprocess.run(
            [sys.executable, "-c", code, str(bucket / "x")],
            env={**os.environ, **server.machine},
            capture_output=True,
            text=True,
            timeout=120,
        )
    assert said.stdout.strip() == "one", said.stderr
    assert server.issued > revoked[0]
