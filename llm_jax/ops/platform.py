"""The platform that a program is traced for."""

from __future__ import annotations

import jax


def platform() -> str:
    """``cpu``, ``gpu`` or ``tpu``.

    The platform of the current mesh, whose devices need not exist (``llm_jax.plan``); without a
    mesh that of the default devices.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    if device is None:
        return jax.default_backend()
    return device.platform.replace("cuda", "gpu").replace("rocm", "gpu")
