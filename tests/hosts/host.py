"""One process of a gang: ``llm-jax`` as it is, with the fault named in FAULT put into the reading of data."""

from __future__ import annotations

import os
import sys
import time
from itertools import islice

from llm_jax.cli import main
from llm_jax.data.loader import Loader
from llm_jax.types import DataError


def put(fault: str) -> None:
    """``slow SECONDS``: each batch takes so long. ``stuck STEP``, ``broken STEP``, ``ends STEP``: from that step on."""
    kind, _, number = fault.partition(" ")
    batch, iterate = Loader.batch, Loader.iterate

    def faulty(self, step):
        if kind == "slow":
            time.sleep(float(number))
        elif kind == "stuck" and step == int(number):
            time.sleep(3600)
        elif kind == "broken" and step == int(number):
            raise DataError("shard 'tokens-train.array_record-00000' is damaged")
        return batch(self, step)

    Loader.batch = faulty
    if kind == "ends":
        Loader.iterate = lambda self, start=0: islice(iterate(self, start), int(number) - start)


if __name__ == "__main__":
    if os.environ.get("FAULT"):
        put(os.environ["FAULT"])
    sys.exit(main(sys.argv[1:]))
