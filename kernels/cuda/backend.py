"""The backend "cupy". Importing this needs CuPy and a GPU; ImportError says which of them is missing, and why."""

from ramnet_np.backend import Backend

from ..gpu_errors import explain_out_of_memory
from .address.decode import decode_backward, decode_forward
from .layers import LAYERS
from .memory.memory import memory_backward, memory_forward, memory_forward_of_coming_rows
from .runtime.errors import import_cupy
from .sparse.rows import DeviceRows
from .sparse.step import sparse_step
from .step.step import step, step_by_address

import_cupy()

_of_a_sequence = explain_out_of_memory(
    "reduce B or T (a sequence can be fed in pieces, its state and positions passed on), leave out the returned state "
    "with return_state=False, or give back what CuPy's pool keeps with cupy.get_default_memory_pool().free_all_blocks()"
)
_of_a_token = explain_out_of_memory("reduce B, or free other arrays and CuPy's pool")

BACKEND = Backend(
    name="cupy",
    decode_forward=_of_a_sequence(decode_forward),
    decode_backward=_of_a_sequence(decode_backward),
    memory_forward=_of_a_sequence(memory_forward),
    memory_backward=_of_a_sequence(memory_backward),
    step=_of_a_token(step),
    array_kind="cupy",
    accepts_short_positions=True,
    layers=LAYERS,
    sparse_rows=DeviceRows,
    sparse_step=sparse_step,
    sparse_forward=_of_a_sequence(memory_forward_of_coming_rows),
    step_by_address=step_by_address,
)
