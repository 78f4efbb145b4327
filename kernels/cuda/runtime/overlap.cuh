// What a kernel does that may begin while the launch before it still runs: see overlap.py. Both do nothing in a launch
// of the usual kind, and on GPUs that know no other.
//
// What earlier launches write is read behind the wait, by plain loads: the compiler may move a load of the read-only path
// (load_read_only) to before it.
#pragma once
#include "runtime/common.cuh"

// The next launch may begin as soon as every block of this one has come here, and there is room.
DEVICE void let_next_launch_begin() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Until the launch before this one has ended, and what it wrote can be seen.
DEVICE void wait_for_launch_before() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
