// count.h: what the checker tells the counters of count.cpp.
#pragma once
#include "shadow.h"

namespace simt {
// Set by the option "count"; all that follows is called only then.
extern bool counting;

// An access of the running thread; of more than 16 bytes: as several.
void count_access(bool shared, const void* p, size_t n, bool write, Place at);
// An atomic operation likewise: what it changes is read before.
void count_atomic(bool shared, const void* p, size_t n, Place at);
// All lanes of this warp, or of all warps, have made the accesses that stand before this point.
void count_warp(int warp);
void count_all_warps();
// Forgets the launch before.
void count_launch_begins();
}  // namespace simt
