"""A command whose ranks fail in one way or another: ``python -m tests.runs.launch_case HOW SIZE``."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from ramnet_np.runs.launch import run_on_ranks
from ramnet_np.train.ranks import Ranks


def call(ranks: Ranks) -> None:
    how, is_last = sys.argv[1], ranks.rank == ranks.size - 1
    ranks.barrier()
    if how == "alike":
        raise ValueError("no such preset")
    if how == "raises" and is_last:
        raise OSError("the disk is full")
    if how == "dies" and is_last:
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "hangs" and is_last:
        time.sleep(60)
    if how == "diverges":
        diverge(ranks, is_last)
    ranks.barrier()
    if ranks.rank == 0:
        print(f"{ranks.size} ranks have ended", flush=True)
    if how == "interrupted":
        raise SystemExit(143)


def diverge(ranks: Ranks, is_last: bool) -> None:
    from ramnet_np import use_backend
    from ramnet_np.data.batches import Batch
    from ramnet_np.model import RAMNet, RAMNetConfig
    from ramnet_np.train.config import TrainConfig
    from ramnet_np.train.optim import adamw_init
    from ramnet_np.train.trainer import CPUTrainer

    model = RAMNet(RAMNetConfig(vocab=8, width=8, layers=1, order=2, ffn="none"))
    ids = np.zeros((2, 4), np.int64)
    before = {name: param.copy() for name, param in model.params.items()}
    if is_last:
        next(iter(model.params.values()))[...] = np.nan
    trainer = CPUTrainer(model, TrainConfig(), adamw_init(model.params), ranks=ranks)
    try:
        with use_backend("numpy"):  # the others say that they compile
            trainer.step(Batch(ids, ids))
    finally:
        assert is_last or all((model.params[name] == param).all() for name, param in before.items())


def rank_processes(out: Path, variable: str) -> dict[int, int]:
    """Process ids of the ranks that write to ``out``, by rank, which ``variable`` of their environment says."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = dict(v.split("=", 1) for v in (folder / "environ").read_text().split("\0") if "=" in v)
            if str(out) in (folder / "cmdline").read_text() and variable in variables:
                found[int(variables[variable])] = int(folder.name)
        except (OSError, UnicodeDecodeError):
            continue
    return found


if __name__ == "__main__":
    command = [sys.executable, "-m", "tests.runs.launch_case", *sys.argv[1:]]
    run_on_ranks(int(sys.argv[2]), "cpu", 2.0 if sys.argv[1] == "hangs" else 60.0, command, call)
