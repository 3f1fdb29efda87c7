// fibers.cpp: the switch from a thread of a block to another, and the choice of the one that runs next.
#include <sys/mman.h>

#include <cstdarg>

#include "runtime.h"

#ifndef SIMT_CHECKER  // which uses the same array: a thread runs one variant at a time
alignas(1024) thread_local unsigned char smem[SMEM_MAX];
#endif
alignas(64) thread_local char simt_tls_anchor;

namespace simt {
__thread __attribute__((tls_model("initial-exec"))) Tls tls;
__thread __attribute__((tls_model("initial-exec"))) Worker* worker;
Options options;

// Saves the registers that a call must keep, and the stack pointer; loads those of the other side. It goes on by a
// jump: a return would be predicted wrongly every time, and cost three times as much.
#if defined(__x86_64__)
asm(R"(
.text
.globl simt_switch
.type simt_switch,@function
.p2align 4
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  popq %rcx
  jmp *%rcx
.size simt_switch,.-simt_switch
)");
#else
#error "the simulator's switch of stacks is written for x86-64 only"
#endif

// ---------------------------------------------------------------- failures

[[noreturn]] void fail(const char* format, ...) {
  char message[1800];
  va_list list;
  va_start(list, format);
  vsnprintf(message, sizeof message, format, list);
  va_end(list);
  const uint3 t = tls.self ? tls.self->tid : uint3{0, 0, 0};
  snprintf(worker->error, sizeof worker->error, "kernel %s, block (%u,%u,%u), thread (%u,%u,%u): %s",
           worker->kernel->name, tls.bid.x, tls.bid.y, tls.bid.z, t.x, t.y, t.z, message);
  worker->failed = true;
  void* abandoned;  // the fibers of this block are not run again
  simt_switch(&abandoned, worker->main_sp);
  __builtin_unreachable();
}

static std::string description(const Thread& t) {
  static const char* const STATES[] = {"not started", "runnable", "at barrier", "in warp op", "exited"};
  char text[256];
  snprintf(text, sizeof text, "\n  thread (%u,%u,%u): %s", t.tid.x, t.tid.y, t.tid.z, STATES[t.state]);
  std::string all = text;
  if (t.state == AT_BARRIER || t.state == IN_WARP_OP) {
    snprintf(text, sizeof text, " %s:%d", t.file, t.line);
    all += text;
  }
  if (t.state == IN_WARP_OP) {
    snprintf(text, sizeof text, " mask %08x", t.mask);
    all += text;
  }
  return all;
}

[[noreturn]] static void deadlock() {
  std::string text;
  const Thread* last = nullptr;
  int shown = 0;
  for (int i = 0; i < worker->thread_count && shown < 8; i++) {  // one of each run of equals
    const Thread& t = worker->threads[i];
    if (last && last->state == t.state && last->line == t.line) continue;
    text += description(t);
    last = &t;
    shown++;
  }
  fail("deadlock: no thread can run (divergent barrier or warp op?)%s", text.c_str());
}

// ---------------------------------------------------------------- choice of the next thread

// A bit of the mask: the next after `after`, going round; or by the order that was asked for.
static inline int pick_bit(uint32_t mask, int after) {
  switch (options.order) {
    case Options::REVERSE:
      return 31 - __builtin_clz(mask);
    case Options::RANDOM: {
      int skip = next_random() % __builtin_popcount(mask);
      while (skip--) mask &= mask - 1;
      return __builtin_ctz(mask);
    }
    default: {
      const uint32_t higher = after < 31 ? mask & (~0u << (after + 1)) : 0;
      return __builtin_ctz(higher ? higher : mask);
    }
  }
}

// Another lane of the same warp if possible: its code and data are at hand.
static Thread* pick() {
  Worker& w = *worker;
  int warp = self()->warp, after = self()->lane;
  if (!w.warps[warp].runnable) {
    w.runnable_warps &= ~(1u << warp);
    for (;; w.runnable_warps &= ~(1u << warp)) {
      if (!w.runnable_warps) return nullptr;
      warp = pick_bit(w.runnable_warps, warp);
      if (w.warps[warp].runnable) break;
    }
    after = -1;
  }
  return &w.threads[warp * WARP + pick_bit(w.warps[warp].runnable, after)];
}

static void thread_exits() {
  Thread* s = self();
  Warp& warp = worker->warps[s->warp];
  const uint32_t bit = 1u << s->lane;
  if (s->copies && s->copies->copies_arrived() < s->copies->copies.size()) {
    const Copy& last = s->copies->copies.back();
    fail("exits with cp.async copies outstanding, the last from %s:%d", last.file, last.line);
  }
  warp.alive &= ~bit;
  warp.runnable &= ~bit;
  worker->alive--;
  s->state = EXITED;
  if (warp.pending) {
    for (const WarpOp& op : warp.ops) {
      if (!op.arrived || !(op.mask & bit)) continue;
      fail("exits while lanes %08x wait for it in a warp op at %s:%d (mask %08x)", op.arrived, op.file, op.line,
           op.mask);
    }
  }
  const Barrier& b = worker->barrier;
  if (b.arrived) fail("exits without reaching the barrier at %s:%d where %d threads wait", b.file, b.line, b.arrived);
}

// A thread that is done goes on, on the same stack, as one that has not started: kernels without barriers never switch.
static void fiber_main() {
  for (;;) {
    worker->kernel->invoke(worker->args);
    thread_exits();
    Thread* s = self();
    void* done;
    if (!worker->alive) {
      worker->free_stacks.push_back(s->stack);
      simt_switch(&done, worker->main_sp);
      __builtin_unreachable();
    }
    Thread* next = pick();
    if (!next) deadlock();
    tls.self = next;
    if (next->state == UNSTARTED) {
      next->state = RUNNABLE;
      next->stack = s->stack;
      continue;
    }
    worker->free_stacks.push_back(s->stack);
    next->state = RUNNABLE;
    simt_switch(&done, next->sp);
    __builtin_unreachable();
  }
}

static char* take_stack() {
  if (!worker->free_stacks.empty()) {
    char* stack = worker->free_stacks.back();
    worker->free_stacks.pop_back();
    return stack;
  }
  // The first use of this one: most blocks are small, and a process may have so many pieces of memory only.
  char* guard = worker->stacks + worker->stacks_used++ * STACK_PITCH;
  mprotect(guard, PAGE, PROT_NONE);
  return guard + PAGE;
}

void prepare(Thread* t) {
  t->stack = take_stack();
  // Begins differ by stack: equal ones would all map to the same few lines of the cache.
  const size_t color = (uintptr_t)t->stack / STACK % 29 * 128;
  void** sp = (void**)(t->stack + STACK - 128 - color);
  *--sp = nullptr;
  *--sp = (void*)fiber_main;
  for (int i = 0; i < 6; i++) *--sp = nullptr;  // the registers that simt_switch loads
  t->sp = sp;
}

void wait_for_others() {
  Thread* s = self();
  Thread* next = pick();
  if (!next) deadlock();
  if (next == s) {
    s->state = RUNNABLE;
    return;
  }
  if (next->state == UNSTARTED) prepare(next);
  next->state = RUNNABLE;
  tls.self = next;
  simt_switch(&s->sp, next->sp);
}
}  // namespace simt
