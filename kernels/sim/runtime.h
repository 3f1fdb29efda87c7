// runtime.h: what the parts of the simulator's runtime share. Kernels see simt.h only.
//
// Every thread of a block is a fiber, a stack of its own on one thread of the host, which runs until it has to wait at
// a barrier or for the other lanes of its warp. A block never moves to another thread of the host, so its shared memory
// is thread-local there.
#pragma once
#include <signal.h>

#include <map>
#include <mutex>
#include <string>
#include <vector>

#include "simt.h"  // last: it defines words like __noinline__, which the library's headers use

// Dynamic shared memory: every `extern __shared__ unsigned char smem[];` of a kernel is this array. As large as on an
// H200.
static constexpr size_t SMEM_MAX = 232448;
extern thread_local unsigned char smem[SMEM_MAX];
// Static shared arrays are found by their distance from this variable. The checker is compiled with another name for
// it.
extern thread_local char simt_tls_anchor;
extern "C" char __executable_start, _end;

namespace simt {
static constexpr size_t STACK = 64 << 10, PAGE = 4096, STACK_PITCH = STACK + PAGE;  // each above a page without access
static constexpr int MAX_THREADS = 1024, WARP = 32, MAX_WARPS = MAX_THREADS / WARP;

// ---------------------------------------------------------------- state

enum State : uint8_t { UNSTARTED, RUNNABLE, AT_BARRIER, IN_WARP_OP, EXITED };

struct Copy {
  void* dst;
  const void* src;
  uint32_t bytes, src_bytes;
  const char* file;
  int line;
};
// Asynchronous copies of a thread. A group is the number of copies that had been issued when it was committed.
struct CopyQueue {
  std::vector<Copy> copies;
  std::vector<uint32_t> groups;
  size_t arrived = 0;  // groups
  size_t copies_arrived() const { return arrived ? groups[arrived - 1] : 0; }
};

struct Thread : ThreadPub {
  void* sp;
  char* stack;
  State state;
  const char* file;  // where it waits
  int line;
  uint32_t mask;
  CopyQueue* copies;
};

// An operation of some lanes of a warp, for which those that have arrived wait.
struct WarpOp {
  uint32_t mask, arrived;
  int kind, line;
  const char* file;
  void* data[WARP];
};
struct Warp {
  uint32_t exist, alive, runnable;  // lanes
  int pending;                      // operations that are not complete
  WarpOp ops[4];                    // of disjoint lanes
};
struct Barrier {
  int arrived;
  const char* file;
  int line;
  int count, all, any;  // of the predicates, while threads arrive
  int result[3];
};

// A thread of the host with the block that it runs.
struct Worker {
  Thread threads[MAX_THREADS];
  Warp warps[MAX_WARPS];
  Barrier barrier;
  int thread_count = 0, warp_count = 0, alive = 0;
  uint32_t runnable_warps = 0;
  uint3 block_dim{};
  const Kernel* kernel = nullptr;
  void** args = nullptr;
  size_t dynamic_bytes = 0;
  uint64_t random = 1, block_serial = 0;
  bool failed = false;
  char error[2200];
  void* main_sp = nullptr;  // of the code that started the block
  char* stacks = nullptr;
  int stacks_used = 0;  // those that are guarded
  std::vector<char*> free_stacks;
  char signal_stack[1 << 16], failing_stack[1 << 18];
  ~Worker() {
    for (Thread& t : threads) delete t.copies;
  }
};
extern __thread __attribute__((tls_model("initial-exec"))) Worker* worker;
static inline Thread* self() { return static_cast<Thread*>(tls.self); }

struct Options {
  enum { FORWARD, REVERSE, RANDOM } order = FORWARD;
  uint64_t seed = 1;
  int threads = 0;     // of the host
  bool poison = true;  // shared memory is NaN when a block begins
};
extern Options options;

// ---------------------------------------------------------------- fibers.cpp

extern "C" void simt_switch(void** save_sp, void* load_sp);
// Gives an unstarted thread a stack.
void prepare(Thread* t);
// The running thread has to wait: runs others until it is runnable again.
void wait_for_others();
static inline uint64_t next_random() {
  uint64_t x = worker->random;
  x ^= x << 13;
  x ^= x >> 7;
  x ^= x << 17;
  return worker->random = x;
}

// ---------------------------------------------------------------- memory.cpp

// A static __shared__ array: a thread-local variable of a function, `_ZZ<function>E<name>`. build/sim.rs writes the table
// of them, by which they are poisoned and named in messages.
struct Region {
  const char* name;
  ptrdiff_t offset;  // from the anchor
  size_t size;
  char* begin() const { return &simt_tls_anchor + offset; }
};
extern const std::vector<Region> static_arrays;

struct Allocation {
  size_t size;
  char* map;
  size_t map_size;
};
extern std::map<uintptr_t, Allocation> allocations;
extern std::mutex allocations_mutex;

// ---------------------------------------------------------------- lines.cpp

// The file and line of an instruction, given as its distance from the begin of the program.
std::string source_line(size_t pc);

// ---------------------------------------------------------------- check.cpp, or nocheck.cpp

void check_launch_begins();
void check_block_begins();
void check_block_barrier();
void check_warp_barrier(int warp);
// All lanes of a warp have come to an operation of theirs.
void check_warp_meets(int warp);
void check_block_ends();
// Counts what launches ask of memory, or no longer. False where this variant cannot.
bool check_counts(bool on);
// Where the access that is being checked stands, if one is.
std::string checked_place();
}  // namespace simt
