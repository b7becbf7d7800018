"""A bucket for the tests: of this machine, new for each of them."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from llm_jax.storage.local_files import FOLDER
from llm_jax.storage.paths import path_of


@pytest.fixture(scope="session")
def server():
    # Imported here: where the emulator is missing, the modules of tests are skipped with a reason.
    from bucket_server import BucketServer

    with BucketServer() as running:
        before = {name: os.environ.get(name) for name in running.environment}
        os.environ.update(running.environment)
        yield running
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


@pytest.fixture
def bucket(server, tmp_path, request, monkeypatch):
    """A folder of the bucket that no other test uses, with a cache of its own."""
    from bucket_server import BUCKET
    from gcsfs import retry

    # gcsfs tries as often as ever, and waits for a hundredth of the seconds between its tries.
    waits = SimpleNamespace(sleep=lambda seconds: asyncio.sleep(seconds / 100))
    monkeypatch.setattr(retry, "asyncio", waits)
    monkeypatch.setenv(FOLDER, str(tmp_path / "cache"))
    return path_of(f"gs://{BUCKET}/{request.node.name.replace('[', '-').replace(']', '')}")
