"""A small grid of the GPU backend's kernels, for compute-sanitizer: `make sanitize-gpu`."""

import cupy
import numpy as np

from tests.operation_cases import CASES, Case, draw, run, run_steps

NAMES = ("plain", "K-pair-read-1", "everything", "C-odd", "M-large", "mask-gsu-per-token", "huge-logits")
STEPS = (
    Case("steps", T=3, U=5, C=64, options={"mass_aware": True, "cape_heads": 1}, masked=0.3),
    Case("steps-many", T=2, H=1, U=5, C=20, K=(40, 64)),
    Case("steps-addressed", T=2, H=1, U=5, C=20, K=(8, 65)),
)
RENUMBERED = Case("renumbered", B=1, T=30, H=2, U=8, P=4, C=8, dstate=False, options={"mass_aware": True})


def main() -> None:
    """Forward, backward and steps of every case, in both precisions."""
    for case in [*(case for case in CASES if case.name in NAMES), RENUMBERED]:
        for dtype in (np.float32, np.float64):
            inputs = draw(case, dtype)
            run(inputs, "cupy", cupy.asarray)
    for case in [*(case for case in CASES if case.name in NAMES), *STEPS]:
        for dtype in (np.float32, np.float64):
            run_steps(draw(case, dtype), "cupy", cupy.asarray)
    cupy.cuda.Device().synchronize()


if __name__ == "__main__":
    main()
