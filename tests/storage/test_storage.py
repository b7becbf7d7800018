"""Buckets without a bucket: fsspec's file system in memory stands for Cloud Storage.

What needs requests and their failures is in ``tests/buckets``, which starts an emulator.
"""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import ClassVar

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from fsspec.utils import glob_translate

from llm_jax.checkpoints.checkpoint import CheckpointError, Checkpoints
from llm_jax.checkpoints.folder_lock import FolderLock
from llm_jax.data.corpus.sources import expand
from llm_jax.data.prepare.pipeline import prepare
from llm_jax.data.prepare.train_tokenizer import train_tokenizer
from llm_jax.data.shards.records import write_records
from llm_jax.data.shards.shard_files import CHOICE, check_sizes, reads_natively
from llm_jax.data.shards.store import ShardReader, read_manifest
from llm_jax.files import check_folder, file_sizes, readable_folder, write_atomic, write_json
from llm_jax.storage import bucket_path
from llm_jax.storage.failures import as_os_errors
from llm_jax.storage.local_files import FOLDER, LIMIT, cache_limit, local_copy, scratch_folder
from llm_jax.storage.paths import local_file, path_of
from llm_jax.training.metrics import MetricsWriter, read_metrics
from llm_jax.types import ConfigError, DataError


class Memory(MemoryFileSystem):
    """Objects by their name, with a generation that each write counts up."""

    protocol = ("gs", "s3")
    store: ClassVar[dict] = {}
    pseudo_dirs: ClassVar[list] = [""]
    cachable = False
    generation = 0
    damaged = 0

    @classmethod
    def _strip_protocol(cls, path):
        return "/" + str(path).rpartition("://")[2].strip("/")

    def pipe_file(self, path, value, mode="overwrite", **_):
        type(self).generation += 1
        name = self._strip_protocol(path)
        if mode == "create" and name in self.store:
            raise FileExistsError(name)
        with self.open(path, "wb") as file:
            file.write(value)
        self.store[name].generation = self.generation

    def put_file(self, local, path, **_):
        self.pipe_file(path, Path(local).read_bytes())

    def get_file(self, path, local, **_):
        data = self.cat_file(path)
        if type(self).damaged:
            type(self).damaged -= 1
            data = data[:-1]
        Path(local).write_bytes(data)

    def info(self, path, **_):
        found = super().info(path)
        if found["type"] == "file":
            found["generation"] = self.store[self._strip_protocol(path)].generation
        return found

    def ls(self, path, detail=True, **_):
        found = super().ls(path, detail=detail)
        return found if detail else [name.lstrip("/") for name in found]

    def find(self, path, **options):
        found = super().find(path, **options)
        return {name.lstrip("/"): info for name, info in found.items()}

    def glob(self, path, **_):
        pattern = re.compile(glob_translate(self._strip_protocol(path)))
        return [name.lstrip("/") for name in self.store if pattern.match(name)]


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    monkeypatch.setattr(Memory, "store", {})
    monkeypatch.setattr(Memory, "damaged", 0)
    system = Memory()
    monkeypatch.setattr(bucket_path, "file_system", lambda scheme: system)
    monkeypatch.setattr(bucket_path, "check_installed", lambda scheme: None)
    return path_of("gs://bucket/work")


def test_the_stand_in_does_what_a_bucket_does(bucket):
    assert list(bucket.iterdir()) == []
    write_json(bucket / "a" / "b.json", 1)
    assert file_sizes(bucket) == {"a/b.json": 2}
    assert [str(path) for path in bucket.iterdir()] == ["gs://bucket/work/a"]
    assert [str(path) for path in bucket.glob("*/*.json")] == ["gs://bucket/work/a/b.json"]


def test_paths_of_this_machine_import_nothing_about_buckets():
    heavy = {"fsspec", "gcsfs", "etils", "llm_jax.storage.bucket_path"}
    code = (
        "import sys, llm_jax.files\nfrom llm_jax.storage.paths import path_of\n"
        "assert type(path_of('x')).__name__ == 'PosixPath'\n"
        f"print(sorted({heavy} & set(sys.modules)))"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"


def test_a_copy_is_fetched_once_and_anew_when_the_object_changes(bucket):
    write_atomic(bucket / "x.txt", b"one")
    first = local_file(bucket / "x.txt")
    assert (first.name, first.read_bytes()) == ("x.txt", b"one")
    before = first.stat().st_ino
    assert local_file(bucket / "x.txt").stat().st_ino == before
    write_atomic(bucket / "x.txt", b"two")
    assert local_file(bucket / "x.txt").read_bytes() == b"two"
    # Who has the old copy open reads on.
    assert first.read_bytes() == b"one"


def test_a_damaged_copy_is_fetched_again_and_never_used(bucket, monkeypatch):
    write_atomic(bucket / "x", b"whole")
    monkeypatch.setattr(Memory, "damaged", 1)
    assert local_file(bucket / "x").read_bytes() == b"whole"
    write_atomic(bucket / "y", b"whole")
    monkeypatch.setattr(Memory, "damaged", 1000)
    with pytest.raises(OSError, match="arrived damaged"):
        local_file(bucket / "y")
    monkeypatch.setattr(Memory, "damaged", 0)
    assert local_file(bucket / "y").read_bytes() == b"whole"


def test_the_cache_is_bounded_and_evicts_what_nobody_uses(bucket, monkeypatch, tmp_path):
    monkeypatch.setenv(LIMIT, "0.00001")
    code = (
        "import sys; from pathlib import Path; from llm_jax.storage import local_files as c\n"
        "root = c.cache_folder(); folder = root / 'copies' / 'old'; folder.mkdir()\n"
        "(folder / 'x').write_bytes(bytes(8000)); c._use(root, 'old')"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    write_atomic(bucket / "a", bytes(6000))
    write_atomic(bucket / "b", bytes(6000))
    local_file(bucket / "a")
    # The process that used it is gone.
    assert not (tmp_path / "cache" / "copies" / "old").exists()
    with pytest.raises(DataError, match=rf"6,000 bytes.* in use of 10,000; set {LIMIT} to more"):
        local_file(bucket / "b")
    assert local_copy(bucket / "a").stat().st_size == 6000


@pytest.mark.parametrize("text", ["0", "-1", "nan", "inf", "much"])
def test_a_limit_that_is_no_size_is_named(monkeypatch, text):
    monkeypatch.setenv(LIMIT, text)
    with pytest.raises(ConfigError, match=f"{LIMIT} is '{text}'; set it to a number of gigabytes"):
        cache_limit()


def test_scratch_files_end_with_the_block(bucket):
    with scratch_folder() as folder:
        (folder / "x").write_bytes(b"x")
    assert not folder.exists()


def test_a_folder_of_a_bucket_is_read_as_one_of_this_machine(bucket):
    write_atomic(bucket / "m" / "config.json", b"{}")
    write_atomic(bucket / "m" / "sub" / "w", b"data")
    with readable_folder(bucket / "m") as folder:
        assert (folder / "config.json").read_bytes() == b"{}"
        assert (folder / "sub" / "w").read_bytes() == b"data"
    assert not folder.exists()


def test_text_to_shards_and_back(bucket, tmp_path, monkeypatch):
    """Shards of a bucket are, byte for byte, those of a folder."""
    text = "\n".join(json.dumps({"text": f"some words number {n}, again"}) for n in range(60))
    (tmp_path / "a.jsonl").write_text(text)
    write_atomic(bucket / "text" / "a.jsonl", text.encode())
    assert expand([f"{bucket}/te*/*.jsonl"]) == [bucket / "text" / "a.jsonl"]
    train_tokenizer((str(tmp_path / "a.jsonl"),), tmp_path / "tok", vocab_size=290)
    train_tokenizer((f"{bucket}/text",), bucket / "tok", vocab_size=290)
    options = {"block_size": 64, "workers": 1, "validation_fraction": 0.2}
    prepare((str(tmp_path / "a.jsonl"),), tmp_path / "tok", tmp_path / "shards", **options)
    prepare((f"{bucket}/text/*",), bucket / "tok", bucket / "shards", **options)
    here = read_manifest(tmp_path / "shards")
    there = read_manifest(bucket / "shards")
    assert here["shards"] == there["shards"]
    for name in file_sizes(tmp_path / "shards"):
        if name != "manifest.json":
            local = (tmp_path / "shards" / name).read_bytes()
            assert (bucket / "shards" / name).read_bytes() == local, name
    assert file_sizes(tmp_path / "shards").keys() == file_sizes(bucket / "shards").keys()
    blocks = [
        [block.tokens.tolist() for block in ShardReader(folder / "shards", "train").read(0, [0, 1])]
        for folder in (tmp_path, bucket)
    ]
    assert blocks[0] == blocks[1]


def test_shards_of_another_size_are_refused(bucket):
    write_records(bucket / "x", [b"abc"])
    size = (bucket / "x").stat().st_size
    check_sizes(bucket, [{"file": "x", "bytes": size}])
    with pytest.raises(DataError, match=r"gs://bucket/work/x' is truncated: .* copy it again"):
        check_sizes(bucket, [{"file": "x", "bytes": size + 1}])
    with pytest.raises(DataError, match=r"gs://bucket/work/y' is missing"):
        check_sizes(bucket, [{"file": "y", "bytes": 1}])


def test_where_shards_are_read(bucket, monkeypatch):
    assert not reads_natively(bucket, 1000)
    monkeypatch.setenv(LIMIT, "0.000001")
    assert reads_natively(bucket, 1001)
    assert not reads_natively(Path("/shards"), 1001)
    assert not reads_natively(path_of("s3://bucket/x"), 1001)
    monkeypatch.setenv(CHOICE, "native")
    with pytest.raises(ConfigError, match=f"{CHOICE} is 'native', and array_record reads gs://"):
        reads_natively(path_of("s3://bucket/x"), 1)
    monkeypatch.setenv(CHOICE, "both")
    with pytest.raises(ConfigError, match=f"{CHOICE} is 'both'; set it to cache or native"):
        reads_natively(bucket, 1)


def test_a_run_folder_has_one_owner(bucket):
    with FolderLock(bucket), pytest.raises(ConfigError, match="is in use by"):
        FolderLock(bucket).__enter__()
    with FolderLock(bucket):
        pass


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


def test_checkpoints_go_where_orbax_can_commit_them(bucket):
    with pytest.raises(CheckpointError, match=r"folders and to gs://, since orbax has no commit"):
        Checkpoints("s3://bucket/run", 1, "", [])


def test_objects_are_written_whole_or_not_at_all(bucket):
    with pytest.raises(io.UnsupportedOperation, match="use write_bytes"):
        (bucket / "x").open("a")
    with pytest.raises(io.UnsupportedOperation, match="cannot rename in one step"):
        (bucket / "x").rename(bucket / "y")
    assert check_folder(bucket) is None


class Answer(Exception):
    """As the libraries of buckets raise them: told by its package and its status."""


@pytest.mark.parametrize(
    "status, kind, text",
    [
        (401, PermissionError, "gcloud auth application-default login"),
        (403, PermissionError, "role Storage Object Admin"),
        (429, OSError, "the bucket answered 429 to every try; run it again later"),
        (503, OSError, "the bucket answered 503 to every try; run it again later"),
        (400, OSError, "a strange word"),
    ],
)
def test_every_refusal_is_an_os_error_with_the_fix(status, kind, text):
    answer = type("HttpError", (Answer,), {"__module__": "gcsfs.retry", "code": status})
    with pytest.raises(kind, match=text) as caught, as_os_errors("gs://b/x"):
        raise answer("a strange word")
    assert caught.value.filename == "gs://b/x"
    assert text in str(caught.value.strerror)


def test_errors_of_the_program_stay_what_they_are():
    with pytest.raises(KeyError), as_os_errors("gs://b/x"):
        raise KeyError("x")
    assert os.environ["EPATH_USE_TF"] == "false"
