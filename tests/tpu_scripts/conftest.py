"""A cloud of its own for every test of tpu_scripts/."""

from __future__ import annotations

import pytest
from cloud import Cloud


@pytest.fixture
def cloud(tmp_path):
    return Cloud(tmp_path)
