// The contents of the slots, given every write's eta and every read's weight: three scans over the tokens.
//
//     forward   s[row] += eta (v_t - s[row]),  y_t = sum r s[row]
//     replay    the same writes again, for what the backward needs of s:  <dy_t, s[row]> of every read, and the content
//               that the first write of a token found
//     reverse   the adjoint d of s, from the last token to the first:
//               d[row] += r dy_t;  then of every write <d[row], v_t>, dv_t += eta d[row], d[row] *= 1 - eta
//
// Who computes what: one block a (batch, head) and slice of CHANNELS channels, with the slice of the state in shared
// memory (or, if M is too large, in device memory). Its first warp follows the tokens. The 32 lanes are GROUPS groups of
// LANES lanes; a group takes every token's events of its own, a lane VECTOR channels of them:
//
//     lane      0 .. LANES-1    ..              .. 31
//     events    0, 1, ..        2, 3, ..        ..            rows of one token differ, so groups never collide
//     channels  0,1 2,3 ..      0,1 2,3 ..                    VECTOR = 2
//
// What counts is the latency of a token, since tokens follow one another and a multiprocessor holds few of these warps.
// So a token's way is kept to what depends on the token before: load the slots, change them, store them. Its events were
// loaded from the tile two tokens earlier. All else is for the other warps: they bring tiles of tokens from device
// memory ahead of time (cp.async), and add up the parts that the first warp left of a tile's sums over lanes and groups:
//
//     first warp     follow tile n - 1    follow tile n        follow tile n + 1
//     the others     fetch n + 1          fetch n + 2          fetch n + 3
//                    finish n - 2         finish n - 1         finish n
//
// Every sum has a fixed order and no atomics are used: the same inputs give the same bits.
//
// Compiled with: ELEMENT (of values, y), WRITES and READS (K), CHANNELS, VECTOR, IN_SHARED, COPY (bytes of one copy of
// values), and the tokens of a tile in each pass: FORWARD_TOKENS, REPLAY_TOKENS, REVERSE_TOKENS.
#include "content.cuh"

// The writes of a token; ``old``: what they found.
template <class Inputs>
DEVICE void write(const State& state, const Inputs& token, const Vector (&old)[OWN_W]) {
#pragma unroll
    for (int e = 0; e < OWN_W; e++) {
        Vector s = old[e];
#pragma unroll
        for (int i = 0; i < VECTOR; i++) s.at[i] += token.write[e].coefficient * (token.value[0].at[i] - s.at[i]);
        state.store(token.write[e].row, s);
    }
}

extern "C" __global__ void __launch_bounds__(128) content_forward(
    const TokenEvent* __restrict__ events,  // (B*H, T, W + R)
    const ELEMENT* __restrict__ values,     // (B, T, H, C)
    int tokens, int heads, int channels, int rows,
    const Sum* given, Sum* working, Sum* final_state,  // (B*H, rows, C) each, or null; working only if not IN_SHARED
    ELEMENT* __restrict__ y                            // (B, T, H, C)
) {
    const Place place(tokens, heads, channels, rows);
    using Staged = Tiles<FORWARD_TOKENS, 1, 0, GROUPS, 0>;
    Staged tiles(on_chip(), place);
    const State state(place, reinterpret_cast<Sum*>(on_chip() + Staged::bytes()), working);
    state.start(place, given);

    const auto fetch = [&](int number) { tiles.fetch(place, number, events, values, nullptr, nullptr); };
    const auto follow = [&](int number) {
        const auto& tile = tiles.tile[number % 3];
        const int here = tiles.tokens_of(place, number);
        Vector seen[OWN_R] = {};  // what the token before read, and how much of each
        Sum weight[OWN_R] = {};
        const auto leave_read = [&](int i) {
            Vector sum;
            sum.clear();
#pragma unroll
            for (int e = 0; e < OWN_R; e++) sum.add(weight[e], seen[e]);
            tiles.leave(number, i, sum);
        };
        auto token = tiles.load(tile, 0), next = tiles.load(tile, 1);
        for (int i = 0; i < here; i++) {
            Vector old[OWN_W];
#pragma unroll
            for (int e = 0; e < OWN_W; e++) old[e] = state.load(token.write[e].row);
            const auto after = tiles.load(tile, i + 2);
            leave_read(i > 0 ? i - 1 : 0);  // the first token leaves nothing of use, and is overwritten
            write(state, token, old);
            __syncwarp();
#pragma unroll
            for (int e = 0; e < OWN_R; e++) {
                seen[e] = state.load(token.read[e].row);
                weight[e] = token.read[e].coefficient;
            }
            token = next, next = after;
            __syncwarp();
        }
        leave_read(here - 1);
    };
    const auto finish = [&](int number) { tiles.add_vectors(place, number, y); };
    pipeline(tiles.count(place), fetch, follow, finish);
    state.finish(place, final_state);
}

extern "C" __global__ void __launch_bounds__(128) content_replay(
    const TokenEvent* __restrict__ events, const ELEMENT* __restrict__ values, const ELEMENT* __restrict__ dy,
    int tokens, int heads, int channels, int rows, const Sum* given, Sum* working,
    const Sum* dstate,         // (B*H, rows, C), or null
    Sum* __restrict__ dread,   // (slices, B*H, T, R): <dy, s> over the slice
    Sum* __restrict__ found,   // (B, T, H, C): the content that a token's first write found
    Sum* __restrict__ last     // (slices, B*H, rows): <dstate, s> after the last token, if there is a dstate
) {
    const Place place(tokens, heads, channels, rows);
    using Staged = Tiles<REPLAY_TOKENS, 2, 0, 1, OWN_R>;
    Staged tiles(on_chip(), place);
    const State state(place, reinterpret_cast<Sum*>(on_chip() + Staged::bytes()), working);
    state.start(place, given);

    const auto fetch = [&](int number) { tiles.fetch(place, number, events, values, dy, nullptr); };
    const auto follow = [&](int number) {
        const auto& tile = tiles.tile[number % 3];
        const int here = tiles.tokens_of(place, number);
        Vector seen[OWN_R] = {}, dy_before = {};  // of the token before
        const auto leave_dots = [&](int i) {
#pragma unroll
            for (int e = 0; e < OWN_R; e++) tiles.leave(number, i, e, dy_before.dot(seen[e]));
        };
        auto token = tiles.load(tile, 0), next = tiles.load(tile, 1);
        for (int i = 0; i < here; i++) {
            Vector old[OWN_W];
#pragma unroll
            for (int e = 0; e < OWN_W; e++) old[e] = state.load(token.write[e].row);
            const auto after = tiles.load(tile, i + 2);
            leave_dots(i > 0 ? i - 1 : 0);
            write(state, token, old);
            tiles.leave(number, i, old[0]);
            __syncwarp();
#pragma unroll
            for (int e = 0; e < OWN_R; e++) seen[e] = state.load(token.read[e].row);
            dy_before = token.value[1];
            token = next, next = after;
            __syncwarp();
        }
        leave_dots(here - 1);
    };
    const auto finish = [&](int number) {
        tiles.add_vectors(place, number, found);
        Sum* to = dread + place.part(number * REPLAY_TOKENS) * R;
        for (int i = place.helper; i < tiles.tokens_of(place, number) * R; i += HELPERS)
            to[i] = tiles.added(number, i / R, i % OWN_R, i % R / OWN_R);
    };
    pipeline(tiles.count(place), fetch, follow, finish);
    if (dstate && warp_of_thread() == 0) {
        const Sum* d = dstate + place.unit * rows * channels + place.first + place.own;
        for (int step = 0; step < rows; step += GROUPS) {
            const int row = step + place.group;
            Sum sum = 0;
            if (row < rows) {
                const Vector s = state.load(row);
#pragma unroll
                for (int i = 0; i < VECTOR; i++)
                    if (state.inside[i]) sum += d[(long long)(row)*channels + i] * s.at[i];
            }
            sum = sum_over_lanes(sum);
            if (row < rows && place.own == 0)
                last[(blockIdx.y * (long long)(gridDim.x) + place.unit) * rows + row] = sum;
        }
    }
}

extern "C" __global__ void __launch_bounds__(128) content_reverse(
    const TokenEvent* __restrict__ events, const ELEMENT* __restrict__ values, const ELEMENT* __restrict__ dy,
    const Sum* __restrict__ found, int tokens, int heads, int channels, int rows,
    const Sum* dstate, Sum* working, Sum* dgiven,
    ELEMENT* __restrict__ dv,    // (B, T, H, C)
    Sum* __restrict__ dwritten,  // (slices, B*H, T, W): <d, v> over the slice
    Sum* __restrict__ dfound     // (slices, B*H, T): <d, found> of the token's first write
) {
    const Place place(tokens, heads, channels, rows);
    using Staged = Tiles<REVERSE_TOKENS, 2, 1, GROUPS, OWN_W + 1>;
    Staged tiles(on_chip(), place);
    const State d(place, reinterpret_cast<Sum*>(on_chip() + Staged::bytes()), working);
    d.start(place, dstate);

    const int count = tiles.count(place);  // tiles come last to first
    const auto fetch = [&](int n) { tiles.fetch(place, count - 1 - n, events, values, dy, found); };
    const auto follow = [&](int n) {
        const int number = count - 1 - n, here = tiles.tokens_of(place, number);
        const auto& tile = tiles.tile[number % 3];
        Vector written[OWN_W] = {};  // adjoints of the slots written by the token after, before its writes undid them
        Sum eta[OWN_W] = {};
        Vector value = {}, found_by = {};
        const auto leave_gradients = [&](int i) {
            Vector dv_i;
            dv_i.clear();
#pragma unroll
            for (int e = 0; e < OWN_W; e++) {
                dv_i.add(eta[e], written[e]);
                tiles.leave(number, i, e, written[e].dot(value));
            }
            tiles.leave(number, i, OWN_W, written[0].dot(found_by));
            tiles.leave(number, i, dv_i);
        };
        auto token = tiles.load(tile, here - 1), next = tiles.load(tile, here - 2);
        for (int i = here - 1; i >= 0; i--) {
            // reads
            Vector read[OWN_R];
#pragma unroll
            for (int e = 0; e < OWN_R; e++) read[e] = d.load(token.read[e].row);
            leave_gradients(i < here - 1 ? i + 1 : i);  // the first leaves nothing of use, and is overwritten
#pragma unroll
            for (int e = 0; e < OWN_R; e++) {
                read[e].add(token.read[e].coefficient, token.value[1]);
                d.store(token.read[e].row, read[e]);
            }
            __syncwarp();
            // writes
#pragma unroll
            for (int e = 0; e < OWN_W; e++) written[e] = d.load(token.write[e].row);
            const auto after = tiles.load(tile, i - 2);
#pragma unroll
            for (int e = 0; e < OWN_W; e++) {
                eta[e] = token.write[e].coefficient;
                Vector undone = written[e];
#pragma unroll
                for (int c = 0; c < VECTOR; c++) undone.at[c] *= 1 - eta[e];
                d.store(token.write[e].row, undone);
            }
            value = token.value[0], found_by = token.sum;
            token = next, next = after;
            __syncwarp();
        }
        leave_gradients(0);
    };
    const auto finish = [&](int n) {
        const int number = count - 1 - n, here = tiles.tokens_of(place, number);
        tiles.add_vectors(place, number, dv);
        const long long at = place.part(number * REVERSE_TOKENS);
        for (int i = place.helper; i < here * W; i += HELPERS)
            dwritten[at * W + i] = tiles.added(number, i / W, i % OWN_W, i % W / OWN_W);
        for (int i = place.helper; i < here; i += HELPERS) dfound[at + i] = tiles.added(number, i, OWN_W, 0);
    };
    pipeline(count, fetch, follow, finish);
    d.finish(place, dgiven);
}
