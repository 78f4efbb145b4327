"""The memory as one would write it first, to be read beside ``ramnet_np/core/memory.py``: token after token.

The same steps under the same numbers, for one (batch, head) a block. A token's slots are distinct, so a thread can take
an access, or a channel, and no two change one number; a barrier lies where one thread reads what another one wrote.
``plain_masses.py`` has the masses and the weights. Here are the contents, given every write's eta and every read's
weight:

    plain_contents             3., 4.  a thread a channel     s += eta (v - s),  y = sum r s
    plain_contents_in_shared           a thread a channel     the same with a slice of the state in shared memory
    plain_recompute            3., 4.  a thread a channel, then a read     s once more, for <dy, s> of every read
    plain_contents_backward    4., 3.  a thread a channel, then a write    d += r dy;  <d, v>, dv, d *= 1 - eta

``content_forward.py`` and ``content_backward.py`` compute the same faster, for up to ``MAX_FAST_K`` accesses of a
token. The plain kernels take any K, so they serve the calls with more. Every sum has one thread and one order.
"""

from functools import cache

from .compiler import cuda, int64, types, uint32
from .launch import kernel
from .records import (
    PLAIN_SIZES,
    accesses_type,
    content_gradients,
    state_dots,
    state_pass,
    token_arrays,
    token_of,
)


@cuda.jit(device=True)
def start_contents(state, bh, sizes):
    """A thread sets its channels of every row: to the given state, or 0."""
    rows = sizes.n_rows + sizes.W + sizes.R
    for row in range(rows):
        for c in range(cuda.threadIdx.x, sizes.C, cuda.blockDim.x):
            at = (bh * rows + row) * sizes.C + c
            state.working[at] = 0
            if state.has_start != 0 and row < sizes.n_rows:
                state.working[at] = state.start[(bh * sizes.n_rows + row) * sizes.C + c]


@cuda.jit(device=True)
def store_contents(state, bh, sizes):
    """A thread stores its channels of every slot."""
    rows = sizes.n_rows + sizes.W + sizes.R
    for row in range(sizes.n_rows):
        for c in range(cuda.threadIdx.x, sizes.C, cuda.blockDim.x):
            state.end[(bh * sizes.n_rows + row) * sizes.C + c] = state.working[(bh * rows + row) * sizes.C + c]


@cache
def plain_contents_kernel(number):
    """``plain_contents`` for this Numba type."""
    numbers = types.CPointer(number)

    @kernel(accesses_type(number), numbers, state_pass(number), numbers, PLAIN_SIZES)
    def plain_contents(accesses, values, state, y, sizes):
        """One thread a channel, the state in device memory: a thread reads only what it wrote itself."""
        bh, C, W, R = int64(cuda.blockIdx.x), sizes.C, sizes.W, sizes.R
        s, s_at = state.working, bh * (sizes.n_rows + W + R)  # the contents, and this head's first row
        start_contents(state, bh, sizes)
        for t in range(sizes.T):
            _, at, here = token_of(bh, t, sizes)
            access = here * (W + R)
            for c in range(cuda.threadIdx.x, C, cuda.blockDim.x):
                # 3. write
                for k in range(W):
                    i = (s_at + accesses.row[access + k]) * C + c
                    s[i] += accesses.coef[access + k] * (values[at * C + c] - s[i])
                # 4. read
                total = number(0)
                for k in range(W, W + R):
                    total += accesses.coef[access + k] * s[(s_at + accesses.row[access + k]) * C + c]
                y[at * C + c] = total
        if state.has_end != 0:
            store_contents(state, bh, sizes)

    return plain_contents


@cache
def plain_contents_in_shared_kernel(number, lanes: int):
    """``plain_contents_in_shared`` for this Numba type and slices of ``lanes`` channels."""
    numbers = types.CPointer(number)

    @kernel(accesses_type(number), numbers, state_pass(number), numbers, PLAIN_SIZES)
    def plain_contents_in_shared(accesses, values, state, y, sizes):
        """One thread a channel of a slice, which lies in shared memory, a row's channels side by side."""
        s = cuda.shared.array(0, number)
        own, slices, W, R = cuda.threadIdx.x, (sizes.C + lanes - 1) // lanes, sizes.W, sizes.R
        bh, c = int64(cuda.blockIdx.x) // slices, cuda.blockIdx.x % slices * lanes + own
        if c >= sizes.C:
            return
        for row in range(sizes.n_rows + W + R):
            given = state.has_start != 0 and row < sizes.n_rows
            start = state.start[(bh * sizes.n_rows + row) * sizes.C + c] if given else number(0)
            s[uint32(row * lanes + own)] = start  # unsigned: Numba would else look whether the index is negative
        for t in range(sizes.T):
            _, at, here = token_of(bh, t, sizes)
            access = here * (W + R)
            # 3. write
            for k in range(W):
                i = uint32(accesses.row[access + k] * lanes + own)
                s[i] += accesses.coef[access + k] * (values[at * sizes.C + c] - s[i])
            # 4. read
            total = number(0)
            for k in range(W, W + R):
                total += accesses.coef[access + k] * s[uint32(accesses.row[access + k] * lanes + own)]
            y[at * sizes.C + c] = total
        if state.has_end != 0:
            for row in range(sizes.n_rows):
                state.end[(bh * sizes.n_rows + row) * sizes.C + c] = s[uint32(row * lanes + own)]

    return plain_contents_in_shared


@cuda.jit(device=True)
def dot(a, a_at, b, b_at, C, zero):
    """<a, b> over the channels of two rows."""
    total = zero
    for c in range(C):
        total += a[a_at + c] * b[b_at + c]
    return total


@cache
def plain_recompute_kernel(number):
    """``plain_recompute`` for this Numba type."""
    zero = number(0)

    @kernel(
        accesses_type(number), token_arrays(number), state_pass(number), state_dots(number), types.CPointer(number),
        PLAIN_SIZES,
    )  # fmt: skip
    def plain_recompute(accesses, tokens, state, final, dy_dot_s, sizes):
        """<dy, s> of every read; the content before each token's first write; <dstate, s> after the last token."""
        bh, thread, threads = int64(cuda.blockIdx.x), cuda.threadIdx.x, cuda.blockDim.x
        C, W, R, n_rows = sizes.C, sizes.W, sizes.R, sizes.n_rows
        s, s_at = state.working, bh * (n_rows + W + R)
        start_contents(state, bh, sizes)
        for t in range(sizes.T):
            _, at, here = token_of(bh, t, sizes)
            access = here * (W + R)
            # 3. write
            for c in range(thread, C, threads):
                tokens.before[at * C + c] = s[(s_at + accesses.row[access]) * C + c]
                for k in range(W):
                    i = (s_at + accesses.row[access + k]) * C + c
                    s[i] += accesses.coef[access + k] * (tokens.values[at * C + c] - s[i])
            cuda.syncthreads()
            # 4. read: a thread adds up a dot product over all channels
            for k in range(thread, R, threads):
                row = s_at + accesses.row[access + W + k]
                dy_dot_s[here * R + k] = dot(tokens.dy, at * C, s, row * C, C, zero)
            cuda.syncthreads()
        if final.wanted != 0:
            for row in range(thread, n_rows, threads):
                at = (bh * n_rows + row) * C
                final.dots[bh * n_rows + row] = dot(final.dstate, at, s, (s_at + row) * C, C, zero)

    return plain_recompute


@cache
def plain_contents_backward_kernel(number):
    """``plain_contents_backward`` for this Numba type."""
    zero, one = number(0), number(1)

    @kernel(accesses_type(number), token_arrays(number), state_pass(number), content_gradients(number), PLAIN_SIZES)
    def plain_contents_backward(accesses, tokens, state, out, sizes):
        """``out``, and the adjoint of the given state if wanted. ``state`` is the adjoint d: it starts with dstate."""
        bh, thread, threads = int64(cuda.blockIdx.x), cuda.threadIdx.x, cuda.blockDim.x
        C, W, R = sizes.C, sizes.W, sizes.R
        d, d_at = state.working, bh * (sizes.n_rows + W + R)
        start_contents(state, bh, sizes)
        for t in range(sizes.T - 1, -1, -1):
            _, at, here = token_of(bh, t, sizes)
            access = here * (W + R)
            # 4. y = sum r s
            for c in range(thread, C, threads):
                for k in range(W, W + R):
                    i = (d_at + accesses.row[access + k]) * C + c
                    d[i] += accesses.coef[access + k] * tokens.dy[at * C + c]
            cuda.syncthreads()
            # 3. s_t = s + eta (v - s): <d, v> of every write, <d, before> of the first; a thread adds up all channels
            for k in range(thread, W, threads):
                row = d_at + accesses.row[access + k]
                out.d_dot_v[here * W + k] = dot(tokens.values, at * C, d, row * C, C, zero)
                if k == 0:
                    out.d_dot_before[here] = dot(tokens.before, at * C, d, row * C, C, zero)
            cuda.syncthreads()
            #    dv, and d before the write
            for c in range(thread, C, threads):
                dv = zero
                for k in range(W):
                    i = (d_at + accesses.row[access + k]) * C + c
                    dv += accesses.coef[access + k] * d[i]
                    d[i] *= one - accesses.coef[access + k]
                out.dv[at * C + c] = dv
        if state.has_end != 0:
            store_contents(state, bh, sizes)

    return plain_contents_backward
