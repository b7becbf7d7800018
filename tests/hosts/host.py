"""One process of a gang: ``llm-jax`` as it is, with the fault named in FAULT put into the reading of data."""

from __future__ import annotations

import os
import sys
import time
from itertools import islice

from llm_jax.cli import main
from llm_jax.data.loader import Loader
from llm_jax.training.watch import Watch
from llm_jax.types import DataError


def put(fault: str) -> None:
    """``slow SECONDS``: each batch takes so long. ``stuck STEP``, ``broken STEP``, ``ends STEP``: from that step on. ``differs``: not here.

    Prints when it begins; a difference begins when the hosts compare.
    """
    kind, _, number = fault.partition(" ")
    batch, iterate, agree = Loader.batch, Loader.iterate, Watch.agree

    def begins():
        print(f"FAULT {time.time()}", file=sys.stderr, flush=True)

    def faulty(self, step):
        if kind == "slow":
            if step == 0:
                begins()
            time.sleep(float(number))
        elif kind in ("stuck", "broken") and step == int(number):
            begins()
            if kind == "stuck":
                time.sleep(3600)
            raise DataError("shard 'tokens-train.array_record-00000' is damaged")
        return batch(self, step)

    def ending(self, start=0):
        yield from islice(iterate(self, start), int(number) - start)
        begins()

    def agreeing(self, stage, facts):
        begins()
        agree(self, stage, facts)

    Loader.batch = faulty
    if kind == "differs":
        Watch.agree = agreeing
    if kind == "ends":
        Loader.iterate = ending


if __name__ == "__main__":
    if os.environ.get("FAULT"):
        put(os.environ["FAULT"])
    sys.exit(main(sys.argv[1:]))
