// The rows of a segment's slots, as a small dense state with a place for each number, and back. Numbers: numbers.cu.
//
// Who computes what: a warp a place, or several places one after another, 16 bytes of a row a lane. Rows in the host's
// memory are read and written over the bus in the same launch.
//
//     gather_segment     a place has the row of its slot, or that of a slot which was never written
//     scatter_segment    rows of slots that the segment has written; keys that are not there are added
//
// Compiled with: ROW, the type of the contents in a row; THREADS.
#include "sparse/rows.cuh"

#if !defined(ROW) || !defined(THREADS)
#error "ROW and THREADS must be defined"
#endif

using Acc = AccOf<ROW>::type;
constexpr int VECTOR = 16 / sizeof(ROW), STEP = sizeof(Acc) / sizeof(ROW);  // a mass has STEP elements of a row

// Twin: SEGMENT_PARAMS of segment_rows.py.
struct SegmentParams {
    const RowTable* table;
    const long long* keys;      // (N,), by heads and then by numbers
    const long long* start;     // (B*H + 1,): of a head's keys
    const long long* written;   // (B*H,): how many of a head's numbers, the first ones, are of slots that are written
    Acc *contents, *mass;       // (B*H, n, C) and (B*H, n)
    long long places, most;     // B*H*n, n
    int channels;               // C

    DEVICE int mass_at() const { return channels + channels % STEP; }
};

DEVICE long long warp_of_grid() { return (blockIdx.x * (long long)(THREADS) + threadIdx.x) / 32; }

extern "C" __global__ void __launch_bounds__(THREADS) gather_segment(const __grid_constant__ SegmentParams p) {
    const long long place = warp_of_grid();
    if (place >= p.places) return;
    const RowTable table = *p.table;
    const int lane = threadIdx.x % 32, now = RowTable::milliseconds();
    const char* from = table.initial;  // also of places that a head has left over: nothing asks for them
    const long long head = place / p.most, key = p.start[head] + place % p.most;
    if (key < p.start[head + 1]) {
        const Found found = table.find(p.keys[key]);
        if (found.row) {
            from = found.row;
            if (lane == 0) table.used[table.numbers[found.at]] = now;
        }
    }
    Acc* const contents = p.contents + place * p.channels;
    for (int c = lane * VECTOR; c < p.mass_at() + STEP; c += 32 * VECTOR) {
        const uint4 words = *reinterpret_cast<const uint4*>(reinterpret_cast<const ROW*>(from) + c);
        ROW part[VECTOR];
        memcpy(part, &words, sizeof part);
#pragma unroll
        for (int i = 0; i < VECTOR; i++)
            if (c + i < p.channels) contents[c + i] = widen(part[i]);
#pragma unroll
        for (int i = 0; i < VECTOR; i += STEP)
            if (c + i == p.mass_at()) memcpy(p.mass + place, part + i, sizeof(Acc));
    }
}

DEVICE void scatter(const SegmentParams& p, const RowTable& table, long long place, int now) {
    const int lane = threadIdx.x % 32;
    const long long head = place / p.most, number = place % p.most;
    if (number >= p.written[head]) return;
    char* to = nullptr;
    if (lane == 0) {
        bool added;
        const Found found = table.find_or_add(p.keys[p.start[head] + number], added);
        to = found.row;
        if (to) {
            const int row = table.numbers[found.at];
            table.used[row] = now;
            table.changed[row] = true;
        }
    }
    to = reinterpret_cast<char*>(__shfl_sync(~0u, reinterpret_cast<unsigned long long>(to), 0));
    if (!to) return;
    const Acc* const contents = p.contents + place * p.channels;
    for (int c = lane * VECTOR; c < p.mass_at() + STEP; c += 32 * VECTOR) {
        ROW part[VECTOR] = {};
#pragma unroll
        for (int i = 0; i < VECTOR; i++)
            if (c + i < p.channels) narrow(contents[c + i], part[i]);
#pragma unroll
        for (int i = 0; i < VECTOR; i += STEP)
            if (c + i == p.mass_at()) memcpy(part + i, p.mass + place, sizeof(Acc));
        uint4 words;
        memcpy(&words, part, sizeof words);
        *reinterpret_cast<uint4*>(reinterpret_cast<ROW*>(to) + c) = words;
    }
}

// A grid of any size: beside other work it is a small one.
extern "C" __global__ void __launch_bounds__(THREADS) scatter_segment(const __grid_constant__ SegmentParams p) {
    const RowTable table = *p.table;
    const int now = RowTable::milliseconds();
    for (long long place = warp_of_grid(); place < p.places; place += gridDim.x * (THREADS / 32))
        scatter(p, table, place, now);
}
