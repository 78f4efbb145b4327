"""One token, for inference: decode, write and read, updating the state in place."""

from functools import cache

from numba import cuda, int32, int64, types, uint32

from .decode_kernels import beam_search, cape_shift, weigh
from .launch import kernel
from .retention import retention


@cache
def step_kernel(number):
    """``step`` for inputs of this Numba type."""
    numbers, positions_type, flags = types.CPointer(number), types.CPointer(int64), types.CPointer(types.uint8)
    words = number.bitwidth // 32

    @kernel(
        numbers, numbers, numbers, numbers, flags, positions_type, numbers, numbers, numbers, number, number,
        *[int32] * 17,
    )  # fmt: skip
    def step(
        write_logits, read_logits, values, gamma, mask, positions, slots, mass, y, gamma_number, eps, one_gamma, masked,
        batch_stride, counted, H, cape_heads, U, P, C, n_slots, Kw, Kr, lists, write_renorm, read_renorm, gsu, aware,

    ):  # fmt: skip
        """One block a (batch, head), four phases with a barrier between:

        1. two threads of different warps search, one the slots of the write, one those of the read
        2. a thread a written slot: its mass and eta; no two of a token's slots are the same
        3. thread 0 weighs mass-aware reads
        4. a thread owns channels: it alone changes s[:, c] and reads it again, so that what it reads is written
        """
        scores, places = cuda.shared.array(0, number), cuda.shared.array(0, int32)
        thread, threads = cuda.threadIdx.x, cuda.blockDim.x
        unit = cuda.blockIdx.x
        b, h = unit // H, unit % H
        zero, z_at, s_at = number(0), int64(unit) * n_slots, int64(unit) * n_slots * C
        if masked != 0 and mask[b] == 0:
            for c in range(thread, C, threads):
                y[int64(unit) * C + c] = zero
            return
        # shared memory: the lists of both searches, eta and weights; then the same of slots
        eta_at = 2 * lists
        read_at = eta_at + Kw
        list_at = (read_at + Kr) * words
        slot_at = list_at + 2 * lists
        read_slot_at = slot_at + Kw
        shift = cape_shift(b, 0, h, cape_heads, n_slots, positions, batch_stride, counted)
        if thread == 0:
            best, slot, norm = beam_search(write_logits, int64(unit) * U * P, U, P, Kw, scores, places, 0, list_at, 2)
            weigh(
                scores, places, best, slot, 2, norm, Kw, write_renorm, shift, n_slots, places[slot_at:],
                scores[eta_at:], 0,
            )  # fmt: skip
        if thread == threads // 2:
            best, slot, norm = beam_search(
                read_logits, int64(unit) * U * P, U, P, Kr, scores, places, 1, list_at + 1, 2
            )
            weigh(
                scores, places, best, slot, 2, norm, Kr, read_renorm, shift, n_slots, places[read_slot_at:],
                scores[read_at:], 0,
            )  # fmt: skip
        cuda.syncthreads()
        gamma_t = gamma_number
        if one_gamma == 0:
            gamma_t = gamma[unit]
        for k in range(thread, Kw, threads):
            w, at = scores[uint32(eta_at + k)], z_at + places[uint32(slot_at + k)]
            z = retention(w, gamma_t, gsu) * mass[at] + w
            mass[at] = z
            scores[uint32(eta_at + k)] = w / (z + eps)
        cuda.syncthreads()
        if aware != 0:
            if thread == 0:
                total, weighted = zero, zero
                for k in range(Kr):
                    r = scores[uint32(read_at + k)]
                    total += r
                    weighted += r * mass[z_at + places[uint32(read_slot_at + k)]]
                for k in range(Kr):
                    n = scores[uint32(read_at + k)] * mass[z_at + places[uint32(read_slot_at + k)]]
                    scores[uint32(read_at + k)] = total * n / (weighted + eps)
            cuda.syncthreads()
        for c in range(thread, C, threads):
            v = values[int64(unit) * C + c]
            for k in range(Kw):
                at = s_at + int64(places[uint32(slot_at + k)]) * C + c
                s = slots[at]
                slots[at] = s + scores[uint32(eta_at + k)] * (v - s)
            total = zero
            for k in range(Kr):
                total += scores[uint32(read_at + k)] * slots[s_at + int64(places[uint32(read_slot_at + k)]) * C + c]
            y[int64(unit) * C + c] = total

    return step
