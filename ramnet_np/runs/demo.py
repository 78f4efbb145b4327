"""The demo: a RAM-Net learns to recall on a CPU within minutes, then shows one sequence that it has never seen.

The training is ``run_mqar`` with the preset ``demo``, as ``ramnet-np train mqar --preset demo`` runs it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from ramnet_np.data.mqar import IGNORED, Examples, MQARSettings, mqar_examples
from ramnet_np.model import RAMNet
from ramnet_np.runs.mqar import run_mqar
from ramnet_np.runs.presets import MQAR_RUNS
from ramnet_np.train.loop import TrainResult

DEMO = replace(MQAR_RUNS["demo"], overwrite=True)


def run_demo(
    out: Path | str = DEMO.out, *, seed: int = DEMO.seed, progress: bool = True, log: Callable[[str], None] = print
) -> TrainResult:
    """Train the demo's RAM-Net into ``out`` and show what it recalls; a run already in ``out`` is replaced."""
    run = replace(DEMO, out=Path(out), seed=seed)
    (pairs, length, _), *_ = run.data.test
    log(
        f"A RAM-Net of {run.model.layers} layers learns to recall {pairs} pairs from {length} tokens "
        f"(vocabulary {run.data.vocab}; each head addresses {run.model.slots} slots and touches {run.model.top_k})."
    )
    result = run_mqar(run, progress=progress)
    log(f"{result.status} after {result.step} steps and {result.seconds:.0f} s")
    for name, accuracy in result.accuracy.items():
        if name != "mean":
            log(f"held-out accuracy, {name}: {accuracy:.2%}")
    log("")
    log(recall_table(result.model, fresh_sequence(run.data, seed)))
    log("")
    log(f"in {run.out}: curves.png, trace.png, metrics.jsonl, {result.checkpoint.relative_to(run.out)}")
    return result


def fresh_sequence(settings: MQARSettings, seed: int) -> Examples:
    """One sequence of the first test setting, from a stream that neither training nor testing draws from.

    Returns ids and labels, (1, T).

    >>> ids, labels = fresh_sequence(DEMO.data, seed=0)
    >>> ids.shape, int((labels >= 0).sum())
    ((1, 64), 8)
    """
    pairs, length, _ = settings.test[0]
    stream = np.random.SeedSequence(seed, spawn_key=(2,))
    return mqar_examples(pairs, length, 1, vocab=settings.vocab, power=settings.power, seed=stream)


def recall_table(model: RAMNet, sequence: Examples) -> str:
    """The pairs of one sequence and, in the order asked, what the model recalls, marked right or wrong.

    >>> model = RAMNet(DEMO.model, seed=0)
    >>> print(recall_table(model, fresh_sequence(DEMO.data, seed=0)).splitlines()[-1])  # it has learned nothing yet
    0 of 8 right
    """
    ids, labels = sequence
    asked = labels != IGNORED
    logits, _ = model.forward(ids, select=asked)
    recalled, wanted, keys, at = logits.argmax(axis=-1), labels[asked], ids[asked], np.nonzero(asked)[1]
    shown = ids[0, : 2 * len(keys)].reshape(-1, 2)
    lines = ["a new sequence shows   " + "  ".join(f"{key}→{value}" for key, value in shown)]
    lines += ["at token   asked for   recalled"]
    for t, key, got, want in zip(at, keys, recalled, wanted, strict=True):
        verdict = "✓ right" if got == want else f"✗ wrong, it was {want}"
        lines.append(f"{t:8d}   {key:9d}   {got:8d}   {verdict}")
    lines.append(f"{int((recalled == wanted).sum())} of {len(keys)} right")
    return "\n".join(lines)
