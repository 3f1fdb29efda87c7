// barriers.cpp: barriers of a block, and operations of the lanes of a warp.
#include "runtime.h"

namespace simt {
static void release_all() {
  Worker& w = *worker;
  check_block_barrier();
  w.barrier.arrived = 0;
  w.runnable_warps = 0;
  for (int i = 0; i < w.warp_count; i++) {
    w.warps[i].runnable = w.warps[i].alive;
    if (w.warps[i].alive) w.runnable_warps |= 1u << i;
  }
}

void syncthreads(const char* file, int line) {
  Worker& w = *worker;
  Thread* s = self();
  Barrier& b = w.barrier;
  if (b.arrived == 0) {
    b.file = file;
    b.line = line;
  } else if (b.file != file || b.line != line) {
    fail("reaches __syncthreads at %s:%d while %d other threads wait at %s:%d", file, line, b.arrived, b.file, b.line);
  }
  if (w.alive != w.thread_count) {
    fail("reaches __syncthreads at %s:%d after %d threads of the block have exited", file, line,
         w.thread_count - w.alive);
  }
  if (++b.arrived == w.alive) return release_all();
  s->state = AT_BARRIER;
  s->file = file;
  s->line = line;
  w.warps[s->warp].runnable &= ~(1u << s->lane);
  wait_for_others();
}

int syncthreads_reduce(int operation, int predicate, const char* file, int line) {
  Barrier& b = worker->barrier;
  if (b.arrived == 0) {
    b.count = 0;
    b.all = 1;
    b.any = 0;
  }
  b.count += predicate != 0;
  b.all &= predicate != 0;
  b.any |= predicate != 0;
  const bool last = b.arrived + 1 == worker->alive;
  if (last) {  // kept apart: threads may reach the next barrier before others have left this one
    b.result[0] = b.count;
    b.result[1] = b.all;
    b.result[2] = b.any;
  }
  syncthreads(file, line);
  return b.result[operation];
}

uint32_t active_mask() { return worker->warps[self()->warp].alive; }

// The last of the lanes to arrive carries the operation out for all: `run` gets what each has brought.
void collective(int kind, uint32_t mask, void* data, Run run, const char* file, int line) {
  Thread* s = self();
  Warp& warp = worker->warps[s->warp];
  const uint32_t bit = 1u << s->lane;
  if (mask == 0xffffffffu) mask = warp.exist;  // the last warp of a block may be a part of one
  if (!(mask & bit)) fail("warp op at %s:%d: own lane %d not in mask %08x", file, line, s->lane, mask);
  if (mask & ~warp.alive) {
    fail("warp op at %s:%d: mask %08x names exited lanes %08x", file, line, mask, mask & ~warp.alive);
  }
  WarpOp *op = nullptr, *unused = nullptr;
  for (WarpOp& o : warp.ops) {
    if (!o.arrived) {
      if (!unused) unused = &o;
    } else if (o.mask & mask) {
      op = &o;
      break;
    }
  }
  if (!op && !unused) fail("warp op at %s:%d: more than 4 groups of lanes wait in different operations", file, line);
  if (!op) {
    op = unused;
    warp.pending++;
    op->mask = mask;
    op->kind = kind;
    op->file = file;
    op->line = line;
  } else if (op->mask != mask || op->kind != kind || op->line != line || op->file != file) {
    fail(
        "warp divergence: reaches op kind %d at %s:%d mask %08x while lanes %08x wait in op kind %d at %s:%d mask %08x",
        kind, file, line, mask, op->arrived, op->kind, op->file, op->line, op->mask);
  }
  op->data[s->lane] = data;
  op->arrived |= bit;
  if (op->arrived == mask) {
    tls.op_file = file;
    tls.op_line = line;
    if (checking && mask == warp.exist) check_warp_meets(s->warp);
    run(op->data, mask);
    op->arrived = 0;
    warp.pending--;
    warp.runnable |= mask;
    worker->runnable_warps |= 1u << s->warp;
    if (kind == K_SYNCWARP) check_warp_barrier(s->warp);
    return;
  }
  s->state = IN_WARP_OP;
  s->file = file;
  s->line = line;
  s->mask = mask;
  warp.runnable &= ~bit;
  wait_for_others();
}
}  // namespace simt
