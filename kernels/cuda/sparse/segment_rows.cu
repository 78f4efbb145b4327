// The rows of a segment's slots, as a small dense state with a place for each number, and back. Numbers: numbers.cu.
//
// Who computes what: a warp a place, or several places one after another, 16 bytes of a row a lane. Rows in the host's
// memory are read and written over the bus in the same launch.
//
//     gather_segment     a place has the row of its slot, or that of a slot which was never written
//     gather_masses      only the mass; a thread a place
//     scatter_segment    rows of slots that the segment has written; keys that are not there are added
//     gather_part        only the contents, of slots that some of the tokens are the first to use; a warp 32 places
//     take_part          the same contents, from the array that gather_part has filled to another one
//
// Compiled with: ROW, the type of the contents in a row; THREADS.
#include "sparse/rows.cuh"

#if !defined(ROW) || !defined(THREADS)
#error "ROW and THREADS must be defined"
#endif

using Acc = AccOf<ROW>::type;
constexpr int VECTOR = 16 / sizeof(ROW);

// Twin: SEGMENT_PARAMS of segment_rows.py.
struct SegmentParams {
    const RowTable* table;
    const long long* keys;      // (N,), by heads and then by numbers
    const long long* start;     // (B*H + 1,): of a head's keys
    const long long* written;   // (B*H,): how many of a head's numbers, the first ones, are of slots that are written
    Acc *contents, *mass;       // (B*H, n, C) and (B*H, n)
    const unsigned* first;      // (N,), of gather_part and take_part: the first token that uses a slot
    const Acc* source;          // of take_part: where contents come from
    long long places, most;     // B*H*n, n
    int channels;               // C
    unsigned begin, end;        // of gather_part and take_part: from which of the tokens to which
};

DEVICE long long warp_of_grid() { return (blockIdx.x * (long long)(THREADS) + threadIdx.x) / 32; }

// A warp copies a row to its place.
DEVICE void unpack(const SegmentParams& p, const char* from, long long place) {
    Acc* const contents = p.contents + place * p.channels;
    for (int c = threadIdx.x % 32 * VECTOR; c < p.channels; c += 32 * VECTOR) {
        const uint4 words = *reinterpret_cast<const uint4*>(reinterpret_cast<const ROW*>(from) + c);
        ROW part[VECTOR];
        memcpy(part, &words, sizeof part);
#pragma unroll
        for (int i = 0; i < VECTOR; i++)
            if (c + i < p.channels) contents[c + i] = widen(part[i]);
    }
}

extern "C" __global__ void __launch_bounds__(THREADS) gather_segment(const __grid_constant__ SegmentParams p) {
    const long long place = warp_of_grid();
    if (place >= p.places) return;
    const RowTable table = *p.table;
    const int lane = threadIdx.x % 32, now = RowTable::milliseconds();
    Found found{};  // also of places that a head has left over: nobody asks for them
    const long long head = place / p.most, key = p.start[head] + place % p.most;
    if (key < p.start[head + 1]) found = table.find(p.keys[key]);
    const bool is_there = found.row;
    if (lane == 0) {
        if (is_there) table.note(found, now);
        p.mass[place] = table.mass_of<Acc>(found);
    }
    unpack(p, is_there ? found.row : table.initial, place);
}

extern "C" __global__ void __launch_bounds__(THREADS) gather_masses(const __grid_constant__ SegmentParams p) {
    const long long place = blockIdx.x * (long long)(THREADS) + threadIdx.x;
    if (place >= p.places) return;
    const RowTable& table = *p.table;
    const long long head = place / p.most, key = p.start[head] + place % p.most;
    if (key >= p.start[head + 1]) return;  // nobody asks for places that a head has left over
    const Found found = table.find(p.keys[key]);
    if (found.row) table.note(found, RowTable::milliseconds());
    p.mass[place] = table.mass_of<Acc>(found);
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
            table.changed[table.note(found, now)] = true;
            *reinterpret_cast<Acc*>(&found.at->mass) = p.mass[place];
        }
    }
    to = reinterpret_cast<char*>(__shfl_sync(~0u, reinterpret_cast<unsigned long long>(to), 0));
    if (!to) return;
    const Acc* const contents = p.contents + place * p.channels;
    for (int c = lane * VECTOR; c < p.channels; c += 32 * VECTOR) {
        ROW part[VECTOR] = {};
#pragma unroll
        for (int i = 0; i < VECTOR; i++)
            if (c + i < p.channels) narrow(contents[c + i], part[i]);
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
    const int lane = threadIdx.x % 32;
    for (long long place = warp_of_grid() * 32; place < p.places; place += gridDim.x * (long long)(THREADS)) {
        const long long key = key_of_part(p, place + lane);
        const char* from = table.initial;
        if (key >= 0) {
            const Found found = table.find(p.keys[key]);
            if (found.row) from = found.row;
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
            for (int c = lane; c < p.channels; c += 32) p.contents[row + c] = p.source[row + c];
        }
    }
}
