"""What the tests with ranks train: a few steps of tiny models, each as one process or as several would.

    mpiexec -n 2 python -m tests.train.rank_cases FOLDER [stop|resume]

Every case leaves a run below FOLDER. stop: beside FOLDER, a run named chain, whose last rank gets SIGTERM after
step 2; resume: such a run, which goes on to its end.
"""

from __future__ import annotations

import signal
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ramnet_np.backend import use_backend
from ramnet_np.data.batches import Batch, Share, ShuffledSets
from ramnet_np.data.corpus import text_corpus
from ramnet_np.data.mqar import MQARSettings
from ramnet_np.data.text import TextData, TextSettings
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.runs.mqar import MQARRun, run_mqar
from ramnet_np.train.config import TrainConfig
from ramnet_np.train.gradient_sum import BUCKET, GradientSum
from ramnet_np.train.loop import Extras, TrainResult, train
from ramnet_np.train.metrics import Measured
from ramnet_np.train.optim import AdamWState
from ramnet_np.train.ranks import Ranks, gathered_rows, of_every_rank
from ramnet_np.train.shards import Shards, own, owners
from ramnet_np.train.text_loss import documents_loss, windows_loss

TEXT = b"Tom has a fox. Ada has an owl. Ann has a hen. " * 8
SMALL = RAMNetConfig(vocab=256, width=8, layers=2, heads=1, order=2, radix=3, top_k=4, ffn="none")
DOCUMENTS = text_corpus(TEXT)
DOCUMENTS = replace(  # cut at uneven places, so that rows read different documents and end at different steps
    DOCUMENTS,
    documents=tuple(
        DOCUMENTS.documents[0]._replace(name=f"{begin:03}", begin=begin, size=end - begin)
        for begin, end in pairwise([0, 9, 40, 61, 90, 104, 150, 171, 190, 222, 250, 283, 300, 340])
    ),
)
SETTINGS = {
    "windows": TextSettings(length=8, held_out=0.3),
    "documents": TextSettings(length=8, held_out=0.3, carry_state=True),
}
STEPS = TrainConfig(
    steps=6, batch=8, warmup=1, clip=0.5, accumulate=2, log_every=1, evaluate_every=2, checkpoint_every=3
)
MQAR = MQARRun(
    model=replace(SMALL, vocab=32),
    data=MQARSettings(vocab=32, train=((2, 12, 24), (3, 14, 16)), test=((2, 12, 13),)),
    train=replace(STEPS, accumulate=1),
    backend="numpy",
)
CASES = ("windows", "documents", "uneven", "mqar")
REPEATED = ("documents", "uneven")  # those that are run twice, the second time with moments that are shared out


def run_case(
    case: str, out: Path, ranks: Ranks, *, resume: bool = False, stop: bool = False, shard: bool = False
) -> TrainResult:
    """``stop``: the last rank gets SIGTERM at its next measurement."""
    if case == "mqar":
        return run_mqar(replace(MQAR, out=out), progress=False, ranks=ranks)
    share = Share(ranks.rank, ranks.size)
    data: Any = uneven(share) if case == "uneven" else TextData(DOCUMENTS, SETTINGS[case], STEPS.batch, 0, share)

    def measure(model: RAMNet) -> Measured:
        if stop and ranks.rank == ranks.size - 1:
            signal.raise_signal(signal.SIGTERM)
        [(name, windows)] = data.held_out().items()
        loss = windows_loss(model, windows, tokens=16, ranks=ranks)
        more = loss.record()
        if isinstance(data, TextData):
            more["documents"] = documents_loss(model, data.corpus, data.aside, 8, tokens=16, ranks=ranks).loss.nats
        return Measured({name: loss.accuracy, "mean": 0.5}, more)

    with use_backend("numpy"):
        return train(
            RAMNet(SMALL, seed=ranks.rank),  # rank 0's parameters count, for all
            data,
            replace(STEPS, shard_optimizer=shard),
            out,
            settings={"case": case, "train": {"shard_optimizer": shard}},
            resume=resume,
            progress=False,
            extras=Extras(measure),
            ranks=ranks,
        )


def uneven(share: Share) -> ShuffledSets:
    """Sequences of which some have no label and others many."""
    ids = np.random.default_rng(5).integers(256, size=(20, 6))
    labels = np.where(np.arange(6) < np.arange(20)[:, None] % 7, ids, -100)
    return ShuffledSets([Batch(ids, labels)], {"same": Batch(ids, ids)}, STEPS.batch, seed=2, share=share)


def check_calls(ranks: Ranks) -> None:
    """Each call of :class:`Ranks`, on arrays that do not divide evenly."""
    for dtype in (np.float64, np.int64, np.float32):
        array = np.arange(7, dtype=dtype) + 10 * ranks.rank
        ranks.all_reduce(array)
        assert (array == np.arange(7) * ranks.size + 10 * sum(range(ranks.size))).all(), array
        for root in (0, ranks.size - 1):
            array[...] = ranks.rank + 5
            ranks.broadcast(array, root)
            assert (array == root + 5).all(), array
    rows = gathered_rows(ranks, np.full((2, 3), -0.0 if ranks.rank else 1.5, np.float32))
    assert rows.shape == (2 * ranks.size, 3)
    assert (rows[:2] == 1.5).all()
    assert np.signbit(rows[2:]).all()
    assert of_every_rank(ranks, ranks.rank).tolist() == list(range(ranks.size))
    ranks.barrier()


def check_buckets(ranks: Ranks) -> None:
    """However many buckets: the same bits, and none is sent before its gradients are there."""
    rng = np.random.default_rng(ranks.rank)
    shapes = {"embeddings": (40, 3), "a": (50,), "b": (7, 9), "norm": (3,)}
    params = {name: np.zeros(shape, np.float32) for name, shape in shapes.items()}
    own = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    found = []
    for bucket, sent_before_last in ((1, 3), (100, 1), (BUCKET, 0)):
        watched = Watched(ranks)
        over_ranks = GradientSum(watched, params, bucket)
        for _ in range(2):  # a second step leaves nothing of the first
            watched.sent.clear()
            assert over_ranks.labels(np.int64(ranks.rank)) == sum(range(ranks.size))
            for name in reversed(params):
                over_ranks.add({name: own[name]})
            before = len(watched.sent)
            total = over_ranks.total(np.float32(2), np.int64(3))
            assert (before, len(watched.sent)) == (sent_before_last, sent_before_last + 1)
        assert (total.loss, total.correct) == (2 * ranks.size, 3 * ranks.size)
        assert over_ranks.where() == ""
        found.append(total.grads)
    everyone = {name: gathered_rows(ranks, grad[None]) for name, grad in own.items()}
    for name, of_ranks in everyone.items():
        np.testing.assert_allclose(found[0][name], of_ranks.sum(axis=0), rtol=1e-5, atol=1e-6)
        assert all(found[0][name].tobytes() == grads[name].tobytes() for grads in found)


class Watched:
    """Ranks, and the arrays whose sums they were asked to start."""

    def __init__(self, ranks: Ranks):
        self._ranks, self.sent = ranks, []

    def start_all_reduce(self, array: np.ndarray) -> None:
        self.sent.append(array)
        self._ranks.start_all_reduce(array)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._ranks, name)


def check_shards(ranks: Ranks) -> None:
    """Every rank has moments of its own parameters alone, and all parameters after a step."""
    params = {name: np.zeros(size, np.float32) for name, size in {"a": 7, "b": 30, "c": 2, "d": 9, "e": 4}.items()}
    shards = Shards(ranks, params)
    for name in (mine := own(params, ranks)):
        shards.params[name][...] = ranks.rank + 1
    shards.send()
    of = owners(params, ranks.size)
    assert all((param == of[name] + 1).all() for name, param in shards.params.items())
    assert sum(of_every_rank(ranks, len(mine))) == len(params)
    assert set(of.values()) == set(range(ranks.size))
    moments = {name: np.full_like(param, ranks.rank + 5) for name, param in mine.items()}
    whole = shards.whole(AdamWState(3, moments, moments))
    if ranks.rank == 0:
        assert whole.step == 3
        assert {name: set(moment.tolist()) for name, moment in whole.mean.items()} == {n: {of[n] + 5} for n in params}


def check_failures(ranks: Ranks) -> None:
    """A rank that cannot compute, or has a number that is not finite: all hear of it, and which rank it was."""
    params = {name: np.zeros(3, np.float32) for name in "ab"}
    last = ranks.size - 1
    for fails in (True, False):
        over_ranks = GradientSum(ranks, params, bucket=1)
        over_ranks.labels(np.int64(1))
        value = float("inf") if ranks.rank == last and not fails else 1.0
        over_ranks.add({"b": np.full(3, value, np.float32)})
        if fails and ranks.rank == last:
            over_ranks.fail()
        else:
            over_ranks.add({"a": np.ones(3, np.float32)})
            total = over_ranks.total(np.float32(1), np.int64(1))
            assert np.isfinite(total.loss) == (not fails)
            assert np.isfinite(total.grads["b"]).all() == fails
        for _ in range(150):  # a GPU may make more steps before the host asks
            over_ranks.labels(np.int64(1))
            over_ranks.add({name: np.ones(3, np.float32) for name in "ab"})
            over_ranks.total(np.float32(1), np.int64(1))
        assert over_ranks.where() == f" on rank {last}", over_ranks.where()


def main(folder: Path, ranks: Ranks, mode: str) -> None:
    for check in (check_calls, check_buckets, check_shards, check_failures):
        check(ranks)
    for case in REPEATED if mode == "stop" else CASES:
        assert run_case(case, folder / case, ranks, shard=mode == "stop").status == "finished"
    chain = folder.parent / "chain"
    if mode == "stop":
        assert run_case("documents", chain, ranks, stop=True, shard=True).status == "interrupted"
    elif mode == "resume":
        assert run_case("documents", chain, ranks, resume=True, shard=True).status == "finished"


if __name__ == "__main__":
    from ramnet_np.train.mpi_ranks import MPIRanks

    main(Path(sys.argv[1]), MPIRanks(timeout=60), sys.argv[2] if len(sys.argv) > 2 else "")
