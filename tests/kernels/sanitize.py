"""A small grid of the GPU backends' kernels and of training steps, for compute-sanitizer: `make sanitize-gpu`.

`python -m tests.kernels.sanitize numba-cuda` runs one of them alone.
"""

import sys
from dataclasses import replace

import cupy
import numpy as np

from ramnet_np import MemoryTiers, SparseRAMState, ram_attention_forward, ram_attention_step
from ramnet_np.data.batches import Batch
from ramnet_np.data.mqar import mqar_examples
from ramnet_np.model import RAMNet, RAMNetConfig
from ramnet_np.train.config import TrainConfig
from ramnet_np.train.gpu_trainer import GPUTrainer
from ramnet_np.train.optim import adamw_init
from tests.operation_cases import CASES, PACKED, Case, draw, run, run_steps

NAMES = (
    "plain",
    "K-pair-read-1",
    "everything",
    "C-odd",
    "many-sequences",
    "M-large",
    "mask-gsu-per-token",
    "huge-logits",
)
STEPS = (
    Case("steps", T=3, U=5, C=64, options={"mass_aware": True, "cape_heads": 1}, masked=0.3),
    Case("steps-many", T=2, H=1, U=5, C=20, K=(40, 64)),
    Case("steps-addressed", T=2, H=1, U=5, C=20, K=(8, 65)),
)
OTHERS = (
    Case("renumbered", B=1, T=30, H=2, U=8, P=4, C=8, dstate=False, options={"mass_aware": True}),
    Case("renumbered-into-device-memory", B=1, T=450, H=1, U=7, P=4, K=32, C=8, dstate=False),
    Case("segments-of-masses", B=1, T=1100, H=30, U=4, P=2, C=64, dstate=False),
    Case("segments", B=1, T=1024, H=1, U=3, P=3, K=4, C=4, dstate=False),
    Case("dense", B=1, T=40, H=2, K=16, C=20, masked=0.2, dstate=False),
    Case("dense-M-odd", B=1, T=40, H=1, U=2, P=7, C=4, dstate=False, options={"mass_aware": True}),
    Case("K-70", B=1, T=5, H=1, U=5, P=4, K=70, C=8),
    *PACKED,
)


def main() -> None:
    """Forward, backward and steps of every case, in both precisions, on every backend; then training."""
    backends = sys.argv[1:] or ["cupy", "numba-cuda"]
    for backend in backends:
        for case in [*(case for case in CASES if case.name in NAMES), *OTHERS]:
            for dtype in (np.float32, np.float64):
                run(draw(case, dtype), backend, cupy.asarray)
        for case in [*(case for case in CASES if case.name in NAMES), *STEPS]:
            for dtype in (np.float32, np.float64):
                run_steps(draw(case, dtype), backend, cupy.asarray)
    if "cupy" not in backends:
        return
    small = RAMNetConfig(vocab=70, width=20, layers=1, heads=2, order=3, top_k=4, cape=1)
    for config in (
        replace(small, ffn_width=33),
        replace(small, norm="layernorm", ffn="none", output_gate=True, output_norm=True, update="gsu"),
        replace(small, mixer="softmax", ffn="none", short_conv=3),
        replace(small, mixer="window", window=7, ffn="none"),
        replace(small, mixer="window", window=7, ffn="none", width=32),  # heads of 16: the kernels of 16-bit attention
        replace(small, mixer="linear", ffn="none"),
        replace(small, mixer="delta", delta_gate=True, ffn="none"),
    ):
        train(config)
    for memory in (MemoryTiers(), MemoryTiers(gpu=0), MemoryTiers(gpu=0, rows="bfloat16")):
        for order in (2, 6):  # fewer slots than tokens, and more
            read_and_step(memory, order)
    cupy.cuda.Device().synchronize()


def read_and_step(memory: MemoryTiers, order: int) -> None:
    """Segments over a sparse state, and tokens behind them."""
    rng, (B, H, C) = np.random.default_rng(0), (2, 3, 12)
    state = SparseRAMState.initial(B, H, 4**order, C, np.float32, cupy, tiers=memory)
    for T in (50, 20, 1, 1):
        logits = cupy.asarray(2 * rng.normal(size=(2, B, T, H, order, 4)).astype(np.float32))
        values = cupy.asarray(rng.normal(size=(B, T, H, C)).astype(np.float32))
        over = ram_attention_forward if T > 1 else ram_attention_step
        over(*logits, values, state=state)
    assert state.written > 0


def train(config: RAMNetConfig) -> None:
    """Steps of a model with every fused layer, one launch at a time and as a graph."""
    for graphs, dtype, half in (("off", np.float64, False), ("on", np.float32, False), ("off", np.float32, True)):
        model = RAMNet(config, dtype=dtype).to("gpu")
        settings = TrainConfig(steps=3, warmup=2, dtype="bfloat16" if half else "float32")
        batch = Batch(*mqar_examples(pairs=3, length=20, examples=5, vocab=config.vocab))
        with GPUTrainer(model, settings, adamw_init(model.params), graphs) as trainer:
            for _ in range(3):
                trainer.step(batch)
            trainer.report()


if __name__ == "__main__":
    main()
