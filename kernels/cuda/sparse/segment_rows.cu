// The rows of a segment's slots, as a small dense state with a place for each number, and back. Numbers: numbers.cu.
//
// Who computes what: a warp a place, or several places one after another, 16 bytes of a row a lane. Rows in the host's
// memory are read and written over the bus in the same launch.
//
//     gather_segment     a place has the row of its slot, or that of a slot which was never written
//     scatter_segment    rows of slots that the segment has written; keys that are not there are added
//     gather_part        as gather_segment, of slots that some of the tokens are the first to use: a warp 32 places
//     take_part          the same rows, from the dense state that gather_part has filled to another one
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
    const unsigned* first;      // (N,), of gather_part and take_part: the first token that uses a slot
    const Acc *taken_contents, *taken_mass;  // of take_part: where rows come from
    long long places, most;     // B*H*n, n
    int channels;               // C
    unsigned begin, end;        // of gather_part and take_part: from which of the tokens to which

    DEVICE int mass_at() const { return channels + channels % STEP; }
};

DEVICE long long warp_of_grid() { return (blockIdx.x * (long long)(THREADS) + threadIdx.x) / 32; }

// A warp copies a row to its place.
DEVICE void unpack(const SegmentParams& p, const char* from, long long place) {
    const int lane = threadIdx.x % 32;
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
    unpack(p, from, place);
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

// The number among all keys of the slot at a place; -1 where none of the part's tokens is the first to use it.
DEVICE long long key_of_part(const SegmentParams& p, long long place) {
    if (place >= p.places) return -1;
    const long long head = place / p.most, key = p.start[head] + place % p.most;
    if (key >= p.start[head + 1]) return -1;
    const unsigned first = p.first[key];
    return first >= p.begin && first < p.end ? key : -1;
}

// Grids of any size, as of scatter_segment.
extern "C" __global__ void __launch_bounds__(THREADS) gather_part(const __grid_constant__ SegmentParams p) {
    const RowTable& table = *p.table;
    const int lane = threadIdx.x % 32, now = RowTable::milliseconds();
    for (long long place = warp_of_grid() * 32; place < p.places; place += gridDim.x * (long long)(THREADS)) {
        const long long key = key_of_part(p, place + lane);
        const char* from = table.initial;
        if (key >= 0) {
            const Found found = table.find(p.keys[key]);
            if (found.row) {
                from = found.row;
                table.used[table.numbers[found.at]] = now;
            }
        }
        for (unsigned left = __ballot_sync(~0u, key >= 0); left; left &= left - 1) {
            const int other = __ffs(left) - 1;
            const auto row = __shfl_sync(~0u, reinterpret_cast<unsigned long long>(from), other);
            unpack(p, reinterpret_cast<const char*>(row), place + other);
        }
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) take_part(const __grid_constant__ SegmentParams p) {
    const int lane = threadIdx.x % 32;
    for (long long place = warp_of_grid() * 32; place < p.places; place += gridDim.x * (long long)(THREADS)) {
        for (unsigned left = __ballot_sync(~0u, key_of_part(p, place + lane) >= 0); left; left &= left - 1) {
            const long long other = place + __ffs(left) - 1, row = other * p.channels;
            for (int c = lane; c < p.channels; c += 32) p.contents[row + c] = p.taken_contents[row + c];
            if (lane == 0) p.mass[other] = p.taken_mass[other];
        }
    }
}
