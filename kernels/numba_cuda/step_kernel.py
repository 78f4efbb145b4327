"""One token, for inference: decode, write and read, updating the state in place."""

from functools import cache
from typing import Any, NamedTuple

from .compiler import cuda, int32, int64, types, uint32
from .decode_generic import POSITIONS, cape_shift, search_functions
from .launch import kernel, record
from .records import gamma_at, takes_part, token_options
from .retention import retention_of


class StepInputs(NamedTuple):
    """What one token brings."""

    write_logits: Any  # (B, 1, H, U, P)
    read_logits: Any  # (B, 1, H, U, P)
    values: Any  # (B, 1, H, C)


class StepState(NamedTuple):
    """The state, which the kernel changes."""

    slots: Any  # (B, H, M, C)
    mass: Any  # (B, H, M)


class StepSizes(NamedTuple):
    """Shapes and options of a step; the first fields are those that the decoder's device functions read."""

    T: Any  # 1
    H: Any
    U: Any
    P: Any
    n_slots: Any
    cape_heads: Any
    C: Any
    Kw: Any
    Kr: Any
    write_renorm: Any
    read_renorm: Any
    aware: Any
    list_size: Any  # elements of the lists of one search


STEP_SIZES = record(StepSizes, **dict.fromkeys(StepSizes._fields, int32))


@cache
def step_kernel(number, update: str):
    """``step`` for inputs of this Numba type and an update rule."""
    numbers, words = types.CPointer(number), number.bitwidth // 32
    alpha_of, search = retention_of(update, number).alpha, search_functions(number)
    beam_search, address_weights = search.beam_search, search.address_weights

    @cuda.jit(device=True)
    def decode(logits, bh, lists, begin, top_k, renorm, shift, sizes):
        """One thread finds the slots and weights of one address; ``begin``: where lists, weights and slots begin."""
        scores, slots = lists
        score_at, slot_at, found_weight_at, found_slot_at = begin
        found = beam_search(
            logits, int64(bh) * sizes.U * sizes.P, top_k, lists, score_at, slot_at, 2, sizes
        )  # fmt: skip
        address = slots[found_slot_at:], scores[found_weight_at:]
        address_weights(lists, found, 2, top_k, renorm, shift, sizes.n_slots, address, 0)

    @cuda.jit(device=True)
    def write_masses(mass, gamma, address, z_at, eps, Kw):
        """z and eta of every written slot, a thread each; eta takes the place of the weight."""
        (scores, slots), eta_at, slot_at = address
        for k in range(cuda.threadIdx.x, Kw, cuda.blockDim.x):
            w, at = scores[uint32(eta_at + k)], z_at + slots[uint32(slot_at + k)]
            z = alpha_of(w, gamma) * mass[at] + w
            mass[at] = z
            scores[uint32(eta_at + k)] = w / (z + eps)

    @cuda.jit(device=True)
    def mass_aware(mass, address, z_at, eps, Kr):
        """One thread weighs the reads by mass."""
        (scores, slots), read_at, slot_at = address
        total, weighted = number(0), number(0)
        for k in range(Kr):
            r = scores[uint32(read_at + k)]
            total += r
            weighted += r * mass[z_at + slots[uint32(slot_at + k)]]
        for k in range(Kr):
            n = scores[uint32(read_at + k)] * mass[z_at + slots[uint32(slot_at + k)]]
            scores[uint32(read_at + k)] = total * n / (weighted + eps)

    @cuda.jit(device=True)
    def write_and_read(values, contents, write, read, y, bh, s_at, sizes):
        """A thread owns channels: it alone changes s[:, c] and reads it again, so that what it reads is written."""
        (scores, slots), eta_at, write_slot_at = write
        _, read_at, read_slot_at = read
        for c in range(cuda.threadIdx.x, sizes.C, cuda.blockDim.x):
            v = values[int64(bh) * sizes.C + c]
            for k in range(sizes.Kw):
                at = s_at + int64(slots[uint32(write_slot_at + k)]) * sizes.C + c
                s = contents[at]
                contents[at] = s + scores[uint32(eta_at + k)] * (v - s)
            total = number(0)
            for k in range(sizes.Kr):
                at = s_at + int64(slots[uint32(read_slot_at + k)]) * sizes.C + c
                total += scores[uint32(read_at + k)] * contents[at]
            y[int64(bh) * sizes.C + c] = total

    @kernel(
        record(StepInputs, write_logits=numbers, read_logits=numbers, values=numbers), token_options(number),
        POSITIONS, record(StepState, slots=numbers, mass=numbers), numbers, number, STEP_SIZES,
    )  # fmt: skip
    def step(inputs, options, positions, state, y, eps, sizes):
        """One block a (batch, head), four phases with a barrier between:

        1. two threads of different warps search, one the slots of the write, one those of the read
        2. a thread a written slot: its mass and eta; no two of a token's slots are the same
        3. thread 0 weighs mass-aware reads
        4. a thread owns channels
        """
        lists = cuda.shared.array(0, number), cuda.shared.array(0, int32)
        thread, bh = cuda.threadIdx.x, cuda.blockIdx.x
        z_at, s_at = int64(bh) * sizes.n_slots, int64(bh) * sizes.n_slots * sizes.C
        if not takes_part(options, bh // sizes.H):
            for c in range(thread, sizes.C, cuda.blockDim.x):
                y[int64(bh) * sizes.C + c] = number(0)
            return
        # shared memory: the lists of both searches, eta and weights; then the same of slots
        eta_at = 2 * sizes.list_size
        read_at = eta_at + sizes.Kw
        list_at = (read_at + sizes.Kr) * words
        slot_at = list_at + 2 * sizes.list_size
        read_slot_at = slot_at + sizes.Kw
        shift = cape_shift(bh, positions, sizes)
        if thread == 0:
            begin = 0, list_at, eta_at, slot_at
            decode(inputs.write_logits, bh, lists, begin, sizes.Kw, sizes.write_renorm, shift, sizes)
        if thread == cuda.blockDim.x // 2:
            begin = 1, list_at + 1, read_at, read_slot_at
            decode(inputs.read_logits, bh, lists, begin, sizes.Kr, sizes.read_renorm, shift, sizes)
        cuda.syncthreads()
        write_masses(state.mass, gamma_at(options, bh), (lists, eta_at, slot_at), z_at, eps, sizes.Kw)
        cuda.syncthreads()
        if sizes.aware != 0:
            if thread == 0:
                mass_aware(state.mass, (lists, read_at, read_slot_at), z_at, eps, sizes.Kr)
            cuda.syncthreads()
        write, read = (lists, eta_at, slot_at), (lists, read_at, read_slot_at)
        write_and_read(inputs.values, state.slots, write, read, y, bh, s_at, sizes)

    return step
