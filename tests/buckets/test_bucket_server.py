"""The stand-in for Cloud Storage keeps the promises that tensorstore's databases are built on."""

from __future__ import annotations

import http.client

import numpy as np
import pytest
from bucket_server import BUCKET, Fault

from llm_jax.storage.bucket_path import file_system

pytestmark = pytest.mark.process


@pytest.fixture
def ask(server, bucket):
    """Asks for an object of the test's own folder, by method, name and query."""
    folder = str(bucket).partition(f"{BUCKET}/")[2]
    connection = http.client.HTTPConnection(server.address.removeprefix("http://"))

    def asked(method: str, name: str, query: str, body: bytes = b"", **headers: str):
        place = f"/storage/v1/b/{BUCKET}/o/{folder}%2F{name}?{query}"
        if method == "POST":
            place = f"/upload/storage/v1/b/{BUCKET}/o?uploadType=media&name={folder}/{name}&{query}"
        connection.request(method, place, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()

    yield asked
    connection.close()


def test_every_read_of_a_content_names_its_generation(ask, bucket):
    (bucket / "x").write_bytes(b"content")
    written = bucket.joinpath("x").stored().version
    status, headers, body = ask("GET", "x", "alt=media")
    assert (status, headers["x-goog-generation"], body) == (200, written, b"content")
    status, headers, body = ask("GET", "x", "alt=media", Range="bytes=1-3")
    assert (status, headers["x-goog-generation"], body) == (206, written, b"ont")
    (bucket / "x").write_bytes(b"content")
    _, headers, _ = ask("GET", "x", "alt=media")
    assert int(headers["x-goog-generation"]) > int(written)


@pytest.mark.parametrize(
    "method, condition, status",
    [
        ("GET", "alt=media&ifGenerationNotMatch={}", 304),
        ("GET", "alt=media&ifGenerationNotMatch=1", 200),
        ("GET", "alt=media&ifGenerationNotMatch=0", 200),
        ("GET", "ifGenerationNotMatch={}", 304),
        ("GET", "alt=media&ifGenerationMatch={}", 200),
        ("GET", "alt=media&ifGenerationMatch=1", 412),
        ("GET", "ifGenerationMatch=0", 412),
        ("POST", "ifGenerationMatch={}", 200),
        ("POST", "ifGenerationMatch=1", 412),
        ("POST", "ifGenerationMatch=0", 412),
        ("DELETE", "ifGenerationMatch=1", 412),
        ("DELETE", "ifGenerationMatch={}", 200),
    ],
)
def test_a_condition_decides(ask, bucket, method, condition, status):
    (bucket / "x").write_bytes(b"old")
    query = condition.format((bucket / "x").stored().version)
    said, _, body = ask(method, "x", query, b"new" if method == "POST" else b"")
    assert said == status
    assert (bucket / "x").exists() == ((method, status) != ("DELETE", 200))
    if said == 304:
        assert body == b""
    if said == 412:
        assert (bucket / "x").read_bytes() == b"old"


def test_a_condition_on_an_object_that_is_not_there(ask):
    assert ask("GET", "none", "alt=media&ifGenerationNotMatch=0")[0] == 404
    assert ask("GET", "none", "alt=media&ifGenerationNotMatch=1")[0] == 404
    assert ask("DELETE", "none", "ifGenerationMatch=1")[0] == 404
    assert ask("POST", "none", "ifGenerationMatch=1", b"x")[0] == 412
    assert ask("POST", "none", "ifGenerationMatch=0", b"x")[0] == 200


def test_an_upload_in_parts_that_is_finished_is_answered_again(server, bucket):
    lost = Fault(lambda r: "upload_id" in r.path, status=503, done=True)
    written = file_system("gs").open(str(bucket / "x"), "wb")
    with server.failing(lost, times=1), written:
        written.write(b"content")
    assert (bucket / "x").read_bytes() == b"content"


def _array(bucket, name: str, context):
    """A zarr array of an OCDBT database, as orbax opens it."""
    import tensorstore as ts

    base = f"{bucket}/database/"
    spec = {
        "driver": "zarr",
        "kvstore": {"driver": "ocdbt", "base": base, "path": f"{name}/", "assume_config": True},
        "metadata": {"shape": [64], "chunks": [64]},
        "dtype": "float32",
        "recheck_cached_metadata": False,
    }
    return ts.open(spec, create=True, open=True, context=context).result()


@pytest.mark.parametrize("lost", [False, True])
def test_arrays_of_a_database_are_written_one_after_another(server, bucket, lost):
    """The second array reads the manifest again, and writes it on the condition that it is the one
    that was read. Where an answer is lost, the condition fails at the second try.
    """
    import tensorstore as ts

    soon = {"initial_delay": "10ms", "max_delay": "10ms"}
    context = ts.Context({"gcs_request_retries": soon})
    answer = Fault(lambda r: lost and r.uploads and "manifest" in r.name, status=503, done=True)
    for n in range(3):
        values = np.full(64, n, np.float32)
        with server.failing(answer, times=1):
            _array(bucket, f"a{n}", context).write(values).result()
    for n in range(3):
        assert (_array(bucket, f"a{n}", ts.Context()).read().result() == n).all()
