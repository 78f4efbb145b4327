"""The operation in Numba, for CPUs: the default backend for NumPy arrays."""

import os

from ramnet_np.backend import Backend, by_side

from . import decode
from .cache import WHY_NOT_KEPT, KernelCache
from .memory import memory_backward, memory_forward
from .norm import few_rows_rmsnorm
from .products import few_rows_product, normed_gated_product, normed_products, product_added
from .sparse import enter_rows, find_rows, number_slots
from .step import sparse_step, step

# Under GNU OpenMP a thread that waits for the others spins. On a machine with other work to do, the spinning keeps the
# very thread that it waits for from running, and a call takes ten times as long. Read once, when the threads start.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")

decode_forward, decode_backward = by_side(decode.decode_forward, decode.decode_backward)

_kept = KernelCache(step).cache_path is not None

BACKEND = Backend(
    name="numba",
    decode_forward=decode_forward,
    decode_backward=decode_backward,
    memory_forward=memory_forward,
    memory_backward=memory_backward,
    step=step,
    sparse_step=sparse_step,
    layers={
        "few_rows_product": few_rows_product,
        "few_rows_rmsnorm": few_rows_rmsnorm,
        "normed_products": normed_products,
        "normed_gated_product": normed_gated_product,
        "product_added": product_added,
        "find_rows": find_rows,
        "enter_rows": enter_rows,
        "number_slots": number_slots,
    },
    made_by="" if _kept else f"kernels are compiled in every process: {WHY_NOT_KEPT}",
)
