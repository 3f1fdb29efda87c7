// simt.cpp - runtime of simt.h: fibers, barriers, warp collectives, emulated PTX, memory, registry, C ABI
#include <atomic>
#include <condition_variable>
#include <functional>
#include <cstdarg>
#include <csetjmp>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>
#include <elf.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include "simt.h"      // last: it defines __noinline__ and friends
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#define SIMT_ASAN 1
#endif

// dynamic shared memory: every `extern __shared__ T smem[];` in a kernel is this array (227 KB, H200's opt-in maximum)
static constexpr size_t SMEM_MAX = 232448;
alignas(1024) thread_local unsigned char smem[SMEM_MAX];
#define SIMT_TEXT_(x) #x
#define SIMT_TEXT(x) SIMT_TEXT_(x)
alignas(64) thread_local char simt_tls_anchor;     // the checker is compiled with another name for it

extern "C" char __executable_start;
namespace simt {
__thread __attribute__((tls_model("initial-exec"))) Tls tls;

// ---------------------------------------------------------------- context switch
extern "C" void simt_switch(void** save_sp, void* load_sp);
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
#error "port simt_switch (or use swapcontext)"
#endif

#ifdef SIMT_ASAN
static constexpr size_t STACK = 512 << 10;
#else
static constexpr size_t STACK = 64 << 10;
#endif
static constexpr int MAXT = 1024;

struct Copy { void* dst; const void* src; uint32_t n, nsrc; const char* file; int line; };
enum State : uint8_t { UNSTARTED, RUN, WAIT_BAR, WAIT_WARP, DONE };
struct Thread : ThreadPub {
  void* sp; char* stack; State st; const char* file; int line; int barid; uint32_t wmask; int bar_red;
  struct CpQ* cpq;
};
struct CpQ { std::vector<Copy> cp; std::vector<uint32_t> groups; size_t done = 0; size_t issued_done() const { return done ? groups[done - 1] : 0; } };
struct WarpOp { uint32_t mask, arrived; int kind, line; const char* file; void* data[32]; };
struct Warp { uint32_t exist, alive, runnable; int pending; WarpOp ops[4]; };
struct Bar { int arrived, expect; const char* file; int line; };

struct Options { int order = 0; uint64_t seed = 1; int threads = 0; bool poison = true, strict = true, eager_cp = false; } opt;

struct Worker {
  Thread th[MAXT]; Warp w[32]; Bar bars[16];
  std::vector<char*> free_stacks; char* stack_mem = nullptr; char fault_stack[65536], failing_stack[262144]; stack_t old_fault_stack{};
  ~Worker() { for (auto& t : th) delete t.cpq; }
  void* main_sp = nullptr; int nthreads = 0, nwarps = 0, alive = 0; uint32_t run_warps = 0;
  int waiting = 0; int red_and, red_or, red_cnt, red_result[4];
  const Kernel* k = nullptr; void** args = nullptr; bool failed = false; char err[1024]; uint64_t rng = 1;
  unsigned bx = 0, by = 0; size_t dyn = 0; uint64_t interval = 0, block_serial = 0;
#ifdef SIMT_ASAN
  const void* main_bottom = nullptr; size_t main_size = 0;
#endif
};
static thread_local Worker* W;
static inline Thread* self() { return static_cast<Thread*>(tls.self); }
static inline uint64_t rnd() { uint64_t x = W->rng; x ^= x << 13; x ^= x >> 7; x ^= x << 17; return W->rng = x; }

struct Region { const char* name; size_t off, size; };      // static __shared__ arrays, offsets relative to the TLS anchor
static std::vector<Region> g_static;
static void load_static_regions();

// ---------------------------------------------------------------- scheduler
static void switch_to(void** save, [[maybe_unused]] Thread* n, void* sp) {
#ifdef SIMT_ASAN
  if (n) __sanitizer_start_switch_fiber(nullptr, n->stack, STACK); else __sanitizer_start_switch_fiber(nullptr, W->main_bottom, W->main_size);
#endif
  simt_switch(save, sp);
#ifdef SIMT_ASAN
  __sanitizer_finish_switch_fiber(nullptr, nullptr, nullptr);
#endif
}
static void describe(std::string& s, Thread& t) {
  static const char* names[] = {"not started", "runnable", "at barrier", "in warp op", "exited"};
  char b[256]; snprintf(b, sizeof b, "  thread (%u,%u,%u): %s", t.tid.x, t.tid.y, t.tid.z, names[t.st]); s += b;
  if (t.st != UNSTARTED && t.st != RUN && t.st != DONE) { snprintf(b, sizeof b, " %s:%d", t.file, t.line); s += b; if (t.st == WAIT_WARP) { snprintf(b, sizeof b, " mask %08x", t.wmask); s += b; } }
  s += "\n";
}
[[noreturn]] static void to_main() { void* dummy; W->failed = true; switch_to(&dummy, nullptr, W->main_sp); __builtin_unreachable(); }
[[noreturn]] void fail(const char* fmt, ...) {
  char m[600]; va_list ap; va_start(ap, fmt); vsnprintf(m, sizeof m, fmt, ap); va_end(ap);
  auto t = tls.self ? tls.self->tid : uint3{0, 0, 0};
  snprintf(W->err, sizeof W->err, "kernel %s, block (%u,%u,%u), thread (%u,%u,%u): %s", W->k->name, tls.bid.x, tls.bid.y, tls.bid.z, t.x, t.y, t.z, m);
  to_main();
}
[[noreturn]] static void deadlock(const char* why) {
  std::string s = why; s += "\n"; int shown = 0; State last = DONE; int lastline = -1;
  for (int i = 0; i < W->nthreads && shown < 8; i++) { Thread& t = W->th[i]; if (t.st != last || t.line != lastline) { describe(s, t); shown++; last = t.st; lastline = t.line; } }
  fail("%s", s.c_str());
}
static inline int pick_bit(uint32_t m, int after) {
  switch (opt.order) {
    case 1: return 31 - __builtin_clz(m);
    case 2: { int n = rnd() % __builtin_popcount(m); while (n--) m &= m - 1; return __builtin_ctz(m); }
    default: { uint32_t hi = after < 31 ? m & (~0u << (after + 1)) : 0; return __builtin_ctz(hi ? hi : m); }
  }
}
static Thread* pick() {
  Thread* s = self(); int wi = s->warp; Warp* w = &W->w[wi];
  int after = s->lane;
  if (!w->runnable) {
    W->run_warps &= ~(1u << wi);
    while (W->run_warps) { wi = pick_bit(W->run_warps, wi); w = &W->w[wi]; if (w->runnable) break; W->run_warps &= ~(1u << wi); w = nullptr; }
    if (!W->run_warps) return nullptr;
    after = -1;
  }
  return &W->th[wi * 32 + pick_bit(w->runnable, after)];
}
static void fiber_main(); static void release_all();
static void prepare(Thread* n) {
  n->stack = W->free_stacks.back(); W->free_stacks.pop_back();
  void** sp = (void**)(n->stack + STACK - 128 - (size_t)(((uintptr_t)n->stack / STACK) % 29) * 128);   // colour stacks: avoid 4 KiB aliasing
  *--sp = nullptr; *--sp = (void*)fiber_main; for (int i = 0; i < 6; i++) *--sp = nullptr;
  n->sp = sp;
}
static void run_next() {                      // current fiber is blocked: run something else, return when rescheduled
  Thread* s = self(); Thread* n = pick();
  if (!n) deadlock("deadlock: no thread can run (divergent barrier or warp op?)");
  if (n == s) { s->st = RUN; return; }
  if (n->st == UNSTARTED) prepare(n);
  n->st = RUN; tls.self = n;
  switch_to(&s->sp, n, n->sp);
}
static void thread_done() {
  Thread* s = self(); Warp& w = W->w[s->warp]; uint32_t bit = 1u << s->lane;
  if (s->cpq && s->cpq->issued_done() < s->cpq->cp.size()) { Copy& c = s->cpq->cp.back(); fail("exits with cp.async copies outstanding, the last from %s:%d", c.file, c.line); }
  w.alive &= ~bit; w.runnable &= ~bit; W->alive--; s->st = DONE;
  if (!w.pending && !W->waiting) return;
  for (auto& o : w.ops) if (o.arrived && (o.mask & bit)) fail("exits while lanes %08x wait for it in a warp op at %s:%d (mask %08x)", o.arrived, o.file, o.line, o.mask);
  if (opt.strict) for (auto& b : W->bars) if (b.arrived && b.expect == 0) fail("exits without reaching the barrier at %s:%d where %d threads wait", b.file, b.line, b.arrived);
  if (Bar& b = W->bars[0]; b.arrived && b.arrived == W->alive) { b.arrived = 0; release_all(); }     // non-strict: exited threads count as arrived
}
static void fiber_main() {
#ifdef SIMT_ASAN
  __sanitizer_finish_switch_fiber(nullptr, W->main_bottom ? nullptr : &W->main_bottom, W->main_size ? nullptr : &W->main_size);
#endif
  for (;;) {
    W->k->invoke(W->args);
    thread_done();
    Thread* s = self(); void* dummy;
    if (!W->alive) { W->free_stacks.push_back(s->stack); switch_to(&dummy, nullptr, W->main_sp); __builtin_unreachable(); }
    Thread* n = pick();
    if (!n) deadlock("deadlock: no thread can run (divergent barrier or warp op?)");
    tls.self = n;
    if (n->st == UNSTARTED) { n->st = RUN; n->stack = s->stack; continue; }     // reuse this stack: barrier-free kernels never switch
    W->free_stacks.push_back(s->stack); n->st = RUN;
    switch_to(&dummy, n, n->sp); __builtin_unreachable();
  }
}

// ---------------------------------------------------------------- barriers
void race_barrier_all(); void race_barrier_warp(int warp); void race_barrier_warps(uint32_t warps);
static void release_all() {
  race_barrier_all();
  W->interval++; W->waiting = 0; uint32_t rw = 0;
  for (int i = 0; i < W->nwarps; i++) { W->w[i].runnable = W->w[i].alive; if (W->w[i].alive) rw |= 1u << i; }
  W->run_warps = rw;
}
static void barrier(const char* file, int line) {
  Thread* s = self(); Bar& b = W->bars[0];
  if (b.arrived == 0) { b.file = file; b.line = line; b.expect = 0; }
  else if (b.file != file || b.line != line) fail("reaches __syncthreads at %s:%d while %d other threads wait at %s:%d", file, line, b.arrived, b.file, b.line);
  if (opt.strict && W->alive != W->nthreads) fail("reaches __syncthreads at %s:%d after %d threads of the block have exited", file, line, W->nthreads - W->alive);
  if (++b.arrived == W->alive) { b.arrived = 0; release_all(); return; }
  W->waiting++;
  s->st = WAIT_BAR; s->file = file; s->line = line; W->w[s->warp].runnable &= ~(1u << s->lane);
  run_next();
}
void syncthreads(const char* file, int line) { barrier(file, line); }
int syncthreads_red(int op, int pred, const char* file, int line) {
  Bar& b = W->bars[0]; if (b.arrived == 0) { W->red_and = 1; W->red_or = 0; W->red_cnt = 0; }
  W->red_and &= pred != 0; W->red_or |= pred != 0; W->red_cnt += pred != 0;
  barrier(file, line);
  if (b.arrived == 0) { W->red_result[0] = W->red_cnt; W->red_result[1] = W->red_and; W->red_result[2] = W->red_or; }
  return W->red_result[op];
}
void bar_sync(int id, int n, const char* file, int line) {       // PTX bar.sync id, n: counts threads, any warps
  Thread* s = self(); Bar& b = W->bars[id];
  if (id == 0) return barrier(file, line);
  if (n % 32 || n <= 0) fail("bar.sync count %d not a multiple of 32", n);
  if (b.arrived == 0) { b.expect = n; b.file = file; b.line = line; } else if (b.expect != n) fail("bar.sync %d: count %d, others said %d", id, n, b.expect);
  s->file = file; s->line = line; s->barid = id;
  if (++b.arrived == n) {
    uint32_t ws = 1u << s->warp; for (int i = 0; i < W->nthreads; i++) if (W->th[i].st == WAIT_BAR && W->th[i].barid == id) ws |= 1u << (i / 32);
    race_barrier_warps(ws);
    b.arrived = 0; W->interval++;
    for (int i = 0; i < W->nthreads; i++) if (W->th[i].st == WAIT_BAR && W->th[i].barid == id) { W->w[i / 32].runnable |= 1u << (i % 32); W->run_warps |= 1u << (i / 32); W->th[i].barid = 0; W->th[i].st = RUN; W->waiting--; }
    s->barid = 0; return;
  }
  s->st = WAIT_BAR; W->waiting++; W->w[s->warp].runnable &= ~(1u << s->lane);
  run_next();
}

// ---------------------------------------------------------------- warp collectives
uint32_t active_mask() { return W->w[self()->warp].alive; }
void collective(int kind, uint32_t mask, void* data, ExecFn exec, const char* file, int line) {
  Thread* s = self(); Warp& w = W->w[s->warp]; uint32_t bit = 1u << s->lane;
  if (mask == 0xffffffffu) mask = w.exist;                        // partial last warp: hardware has the same 32-lane mask
  if (!(mask & bit)) fail("warp op at %s:%d: own lane %d not in mask %08x", file, line, s->lane, mask);
  if (mask & ~w.alive) fail("warp op at %s:%d: mask %08x names exited lanes %08x", file, line, mask, mask & ~w.alive);
  WarpOp *op = nullptr, *fr = nullptr;
  for (auto& o : w.ops) { if (!o.arrived) { if (!fr) fr = &o; } else if (o.mask & mask) { op = &o; break; } }
  if (!op) { op = fr; w.pending++; op->mask = mask; op->kind = kind; op->file = file; op->line = line; }
  else if (op->mask != mask || op->kind != kind || op->line != line || op->file != file)
    fail("warp divergence: reaches op kind %d at %s:%d mask %08x while lanes %08x wait in op kind %d at %s:%d mask %08x", kind, file, line, mask, op->arrived, op->kind, op->file, op->line, op->mask);
  op->data[s->lane] = data; op->arrived |= bit;
  if (op->arrived == mask) {
    if (checking) { tls.op_file = file; tls.op_line = line; }
    exec(op->data, mask); op->arrived = 0; w.pending--; w.runnable |= mask; W->run_warps |= 1u << s->warp;
    if (kind == K_SYNCWARP) race_barrier_warp(s->warp);
    return;
  }
  s->st = WAIT_WARP; s->file = file; s->line = line; s->wmask = mask; w.runnable &= ~bit;
  run_next();
}

// ---------------------------------------------------------------- cp.async: data lands only at the wait (or at once with SIMT_CP=eager)
static void do_copy(const Copy& c) { memcpy(c.dst, c.src, c.nsrc); if (c.nsrc < c.n) memset((char*)c.dst + c.nsrc, 0, c.n - c.nsrc); }
void cp_async(void* dst, const void* src, int n, int nsrc, const char* file, int line) {
  if ((n != 4 && n != 8 && n != 16) || (uintptr_t)dst % n || (nsrc && (uintptr_t)src % n)) fail("MISALIGNED cp.async of %d bytes at %s:%d (from %p to %p)", n, file, line, src, dst);
  if (checking) { hook_async(dst, n, false, file, line); if (nsrc) hook(src, nsrc, false, file, line); }
  Copy c{dst, src, (uint32_t)n, (uint32_t)nsrc, file, line};
  if (opt.eager_cp) do_copy(c);
  else if (opt.poison) memset(dst, 0xff, n);                     // in flight: contents undefined
  auto* s = self(); if (!s->cpq) s->cpq = new CpQ(); s->cpq->cp.push_back(c);
}
void cp_async_commit() { auto* s = self(); if (!s->cpq) s->cpq = new CpQ(); s->cpq->groups.push_back((uint32_t)s->cpq->cp.size()); }
void cp_async_wait(int keep) {
  auto* s = self(); if (!s->cpq) return; if (keep < 0) { cp_async_commit(); keep = 0; }
  CpQ& q = *s->cpq; size_t g = q.groups.size(); if (g <= q.done + keep) return;
  size_t upto = g - keep, b = q.issued_done(), e = q.groups[upto - 1];
  for (size_t i = b; i < e; i++) { if (!opt.eager_cp) do_copy(q.cp[i]); if (checking) hook_async(q.cp[i].dst, q.cp[i].n, true, q.cp[i].file, q.cp[i].line); }
  q.done = upto;
  if (e == q.cp.size() || q.done >= 32) {                         // compact
    q.cp.erase(q.cp.begin(), q.cp.begin() + e); q.groups.erase(q.groups.begin(), q.groups.begin() + upto); for (auto& x : q.groups) x -= e; q.done = 0;
  }
}

// ---------------------------------------------------------------- emulated tensor ops
static inline float bf(uint32_t w, int hi) { return simt_bits<float>(hi ? w & 0xffff0000u : w << 16); }
static inline float hf(uint32_t w, int hi) { uint16_t u = hi ? w >> 16 : w; _Float16 h; memcpy(&h, &u, 2); return (float)h; }
template <float (*CV)(uint32_t, int)> static void mma16816(void** l, uint32_t mask) {
  if (mask != 0xffffffffu) fail("mma.sync needs a full warp (mask %08x)", mask);
  float A[16][16], B[16][8], C[16][8];
  for (int i = 0; i < 32; i++) {
    auto* d = (MmaData*)l[i]; int g = i >> 2, t = (i & 3) * 2;
    for (int h = 0; h < 2; h++) {
      A[g][t + h] = CV(d->a[0], h); A[g + 8][t + h] = CV(d->a[1], h); A[g][t + 8 + h] = CV(d->a[2], h); A[g + 8][t + 8 + h] = CV(d->a[3], h);
      B[t + h][g] = CV(d->b[0], h); B[t + 8 + h][g] = CV(d->b[1], h);
      C[g][t + h] = d->c[h]; C[g + 8][t + h] = d->c[2 + h];
    }
  }
  typedef float v8 __attribute__((vector_size(32), aligned(4)));
  v8 c[16]; for (int m = 0; m < 16; m++) c[m] = *(v8*)C[m];
  for (int k = 0; k < 16; k++) { v8 b = *(v8*)B[k];
#pragma GCC unroll 16
    for (int m = 0; m < 16; m++) c[m] += A[m][k] * b; }
  for (int m = 0; m < 16; m++) *(v8*)C[m] = c[m];
  for (int i = 0; i < 32; i++) { auto* d = (MmaData*)l[i]; int g = i >> 2, t = (i & 3) * 2; for (int h = 0; h < 2; h++) { d->d[h] = C[g][t + h]; d->d[2 + h] = C[g + 8][t + h]; } }
}
void mma_m16n8k16_bf16_exec(void** l, uint32_t m) { mma16816<bf>(l, m); }
void mma_m16n8k16_f16_exec(void** l, uint32_t m) { mma16816<hf>(l, m); }
void mma_m16n8k8_tf32_exec(void** l, uint32_t mask) {
  if (mask != 0xffffffffu) fail("mma.sync needs a full warp (mask %08x)", mask);
  float A[16][8], B[8][8], C[16][8]; auto cut = [](uint32_t w) { return simt_bits<float>(w & 0xffffe000u); };
  for (int i = 0; i < 32; i++) {
    auto* d = (MmaData*)l[i]; int g = i >> 2, t = i & 3;
    A[g][t] = cut(d->a[0]); A[g + 8][t] = cut(d->a[1]); A[g][t + 4] = cut(d->a[2]); A[g + 8][t + 4] = cut(d->a[3]);
    B[t][g] = cut(d->b[0]); B[t + 4][g] = cut(d->b[1]);
    for (int h = 0; h < 2; h++) { C[g][2 * t + h] = d->c[h]; C[g + 8][2 * t + h] = d->c[2 + h]; }
  }
  for (int m = 0; m < 16; m++) for (int k = 0; k < 8; k++) for (int n = 0; n < 8; n++) C[m][n] += A[m][k] * B[k][n];
  for (int i = 0; i < 32; i++) { auto* d = (MmaData*)l[i]; int g = i >> 2, t = (i & 3) * 2; for (int h = 0; h < 2; h++) { d->d[h] = C[g][t + h]; d->d[2 + h] = C[g + 8][t + h]; } }
}
void ldmatrix_exec(void** l, uint32_t mask) {
  if (mask != 0xffffffffu) fail("ldmatrix needs a full warp (mask %08x)", mask);
  auto* d0 = (LdmData*)l[0]; ThreadPub* me = tls.self;
  for (int j = 0; j < d0->n; j++)
    for (int r = 0; r < 8; r++) {
      int src = j * 8 + r; const char* row = (const char*)((LdmData*)l[src])->row;
      if ((uintptr_t)row & 15) fail("ldmatrix: lane %d row address %p not 16-byte aligned", src, (const void*)row);
      if (checking) { tls.self = &W->th[me->warp * 32 + src]; hook(row, 16, false, tls.op_file, tls.op_line); tls.self = me; }
      uint16_t v[8]; memcpy(v, row, 16);
      if (!d0->trans) for (int c = 0; c < 4; c++) { uint32_t x; memcpy(&x, v + 2 * c, 4); ((LdmData*)l[r * 4 + c])->r[j] = x; }
      else for (int c = 0; c < 8; c++) { auto* dd = (LdmData*)l[c * 4 + r / 2]; uint32_t& x = dd->r[j]; x = r & 1 ? (x & 0xffff) | (uint32_t)v[c] << 16 : (x & 0xffff0000u) | v[c]; }
    }
}
uint32_t smem_u32(const void* p) { return (uint32_t)((const char*)p - (const char*)::smem); }
void* smem_ptr(uint32_t a) { return (char*)::smem + (int32_t)a; }



// The file and line of an instruction, by the program's debug information.
std::string source_line(size_t pc) {
  char command[200], line[400] = "?";
  snprintf(command, sizeof command, "addr2line -s -e /proc/%d/exe 0x%zx 2>/dev/null", getpid(), pc);
  if (FILE* f = popen(command, "r")) {
    if (fgets(line, sizeof line, f)) line[strcspn(line, "\n")] = 0;
    pclose(f);
  }
  return line;
}

// ---------------------------------------------------------------- launch
static void fiber_fault();
static struct sigaction old_segv, old_bus;   // what the program had installed before
static thread_local char fault_msg[400]; static thread_local void* fault_pc;
static void on_fault(int sig, siginfo_t* si, void* uc_) {
  auto* uc = (ucontext_t*)uc_;
  if (!W || !tls.self || !W->k) {            // not in a kernel: the program's own handler, or the default
    const struct sigaction& old = sig == SIGSEGV ? old_segv : old_bus;
    if (old.sa_flags & SA_SIGINFO) return old.sa_sigaction(sig, si, uc_);
    if (old.sa_handler != SIG_DFL && old.sa_handler != SIG_IGN) return old.sa_handler(sig);
    signal(sig, SIG_DFL); return;            // comes again, now fatal
  }
  char* a = (char*)si->si_addr; auto* s = self(); const char* what = "illegal address";
  if (a >= s->stack - 65536 && a < s->stack) what = "stack overflow of the simulated thread";
  fault_pc = (void*)uc->uc_mcontext.gregs[REG_RIP];
  snprintf(fault_msg, sizeof fault_msg, "%s %p (signal %d)%s", what, (void*)a, sig, sig == SIGSEGV && !a ? " - or misaligned vector access" : "");
  uc->uc_mcontext.gregs[REG_RIP] = (greg_t)(void*)fiber_fault;                          // resume in fiber_fault on a fresh stack
  uc->uc_mcontext.gregs[REG_RSP] = (greg_t)(((uintptr_t)(W->failing_stack + sizeof W->failing_stack - 256) & ~15ull) - 8);
}
static void fiber_fault() { fail("%s at %s", fault_msg, source_line((char*)fault_pc - &__executable_start).c_str()); }

static Worker* worker() {
  if (W) return W;
  W = new Worker();
  size_t n = (STACK + 4096) * MAXT;
  W->stack_mem = (char*)mmap(nullptr, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  for (int i = MAXT - 1; i >= 0; i--) { char* p = W->stack_mem + i * (STACK + 4096); mprotect(p, 4096, PROT_NONE); W->free_stacks.push_back(p + 4096); }
  stack_t ss{}; ss.ss_sp = W->fault_stack; ss.ss_size = sizeof W->fault_stack; sigaltstack(&ss, &W->old_fault_stack);
  static thread_local struct Leave { ~Leave() { if (W) { sigaltstack(&W->old_fault_stack, nullptr); munmap(W->stack_mem, (STACK + 4096) * MAXT); delete W; W = nullptr; } } } leave;
  (void)leave;
  return W;
}
void race_block_begin(); void race_launch_begin();
ThreadPub* chk_self() { return tls.self; }
bool chk_on_stack(const void* p) { return (size_t)((const char*)p - W->stack_mem) < (STACK + 4096) * MAXT; }
bool chk_internal(const void* p) { return ((const char*)p >= (char*)W && (const char*)p < (char*)(W + 1)) || ((const char*)p >= (char*)&tls && (const char*)p < (char*)(&tls + 1)); }
int chk_nwarps() { return W->nwarps; }
size_t chk_dyn() { return W->dyn; }
size_t chk_regions(const Region*& r) { r = g_static.data(); return g_static.size(); }
uint64_t chk_block() { return W->block_serial; }
static bool run_block(const Kernel* k, void** args, uint3 bid, uint3 bdim, size_t dyn) {
  Worker* w = worker(); w->k = k; w->args = args; w->dyn = dyn; tls.bid = bid;
  int n = bdim.x * bdim.y * bdim.z; bool fresh = w->failed || w->bx != bdim.x || w->by != bdim.y || w->nthreads != n;
  w->nthreads = w->alive = n; w->nwarps = (n + 31) / 32; w->failed = false; w->interval++; w->block_serial++; w->waiting = 0;
  for (int i = 0; i < w->nwarps; i++) { int c = std::min(32, n - i * 32); Warp& q = w->w[i]; q.exist = q.alive = q.runnable = c == 32 ? ~0u : (1u << c) - 1; q.pending = 0; if (fresh) for (auto& o : q.ops) o.arrived = 0; }
  w->run_warps = w->nwarps == 32 ? ~0u : (1u << w->nwarps) - 1;
  if (fresh) {
    w->bx = bdim.x; w->by = bdim.y; for (auto& b : w->bars) b.arrived = 0;
    for (int i = 0; i < n; i++) { Thread& t = w->th[i]; t.tid = {i % bdim.x, i / bdim.x % bdim.y, i / bdim.x / bdim.y}; t.lane = i & 31; t.warp = i >> 5; t.line = 0; t.barid = 0; if (t.cpq) { t.cpq->cp.clear(); t.cpq->groups.clear(); t.cpq->done = 0; } }
  }
  for (int i = 0; i < n; i++) w->th[i].st = UNSTARTED;
  if (opt.poison) {                                              // 0xff..: NaN in f32, bf16, f16
    memset(::smem, 0xff, dyn);
    for (auto& r : g_static) memset(&simt_tls_anchor + (ptrdiff_t)r.off, 0xff, r.size);
  }
#ifdef SIMT_ASAN
  ASAN_UNPOISON_MEMORY_REGION(::smem, dyn); ASAN_POISON_MEMORY_REGION(::smem + dyn, SMEM_MAX - dyn);
#endif
  race_block_begin();
  Thread* s = &w->th[0]; if (opt.order == 1) s = &w->th[n - 1]; if (opt.order == 2) s = &w->th[rnd() % n];
  prepare(s); s->st = RUN; tls.self = s;
#ifdef SIMT_ASAN
  void* fake; __sanitizer_start_switch_fiber(&fake, s->stack, STACK); w->main_bottom = nullptr; w->main_size = 0;
#endif
  simt_switch(&w->main_sp, s->sp);
#ifdef SIMT_ASAN
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr); ASAN_UNPOISON_MEMORY_REGION(::smem, SMEM_MAX);
#endif
  tls.self = nullptr;
  if (w->failed) { w->free_stacks.clear(); for (int j = MAXT - 1; j >= 0; j--) w->free_stacks.push_back(w->stack_mem + j * (STACK + 4096) + 4096); return false; }
  return true;
}

static Kernel* g_kernels;
void register_kernel(Kernel* k) { for (auto* q = g_kernels; q; q = q->next) if (q == k) return; k->next = g_kernels; g_kernels = k; }

struct DevAlloc { size_t size; char* map; size_t map_size; };
std::map<uintptr_t, DevAlloc> g_allocs; std::mutex g_mu;
static void init_once() {
  static std::once_flag f; std::call_once(f, [] {
    if (auto* e = getenv("SIMT_ORDER")) { if (!strncmp(e, "rev", 3)) opt.order = 1; else if (!strncmp(e, "rand", 4)) { opt.order = 2; if (e[4] == ':') opt.seed = strtoull(e + 5, 0, 10); } }
    if (auto* e = getenv("SIMT_THREADS")) opt.threads = atoi(e);
    if (auto* e = getenv("SIMT_POISON")) opt.poison = atoi(e);
    if (auto* e = getenv("SIMT_STRICT")) opt.strict = atoi(e);
    if (auto* e = getenv("SIMT_CP")) opt.eager_cp = !strcmp(e, "eager");
    if (!opt.threads) opt.threads = std::max(1u, std::thread::hardware_concurrency());
    load_static_regions();
  });
}
// static __shared__ arrays are TLS symbols named _ZZ<function>E<var>: find them in our own symbol table (poison + nicer messages)
static void load_static_regions() {
  int fd = open("/proc/self/exe", O_RDONLY); struct stat sb; if (fd < 0 || fstat(fd, &sb)) return;
  auto* m = (const char*)mmap(nullptr, sb.st_size, PROT_READ, MAP_PRIVATE, fd, 0); close(fd);
  auto* eh = (const Elf64_Ehdr*)m; auto* sh = (const Elf64_Shdr*)(m + eh->e_shoff); uint64_t anchor = ~0ull;
  for (int pass = 0; pass < 2; pass++)
    for (int i = 0; i < eh->e_shnum; i++) if (sh[i].sh_type == SHT_SYMTAB) {
      auto* st = (const Elf64_Sym*)(m + sh[i].sh_offset); const char* str = m + sh[sh[i].sh_link].sh_offset;
      for (size_t j = 0; j < sh[i].sh_size / sizeof *st; j++) if (ELF64_ST_TYPE(st[j].st_info) == STT_TLS) {
        const char* nm = str + st[j].st_name;
        if (pass == 0) { if (!strcmp(nm, SIMT_TEXT(simt_tls_anchor))) anchor = st[j].st_value; }
        else if (!strncmp(nm, "_ZZ", 3) && anchor != ~0ull && st[j].st_size) g_static.push_back({strdup(nm), st[j].st_value - anchor, st[j].st_size});
      }
    }
  munmap((void*)m, sb.st_size);
}
}  // namespace simt

// ---------------------------------------------------------------- worker pool (threads persist; the calling thread is worker 0)
namespace simt {
struct Pool {
  std::mutex launch_mu, mu; std::condition_variable cv, cv_done; std::vector<std::thread> th; const std::function<void(int)>* job = nullptr; uint64_t gen = 0; int want = 0, busy = 0;
  void run(int extra, const std::function<void(int)>& f) {
    std::lock_guard<std::mutex> lg(launch_mu);
    { std::lock_guard<std::mutex> g(mu); while ((int)th.size() < extra) { int id = (int)th.size() + 1; th.emplace_back([this, id] { loop(id); }); } job = &f; want = extra; busy = extra; gen++; }
    cv.notify_all(); f(0);
    std::unique_lock<std::mutex> l(mu); cv_done.wait(l, [&] { return busy == 0; });
  }
  void loop(int id) {
    uint64_t seen = 0;
    for (;;) { const std::function<void(int)>* j; { std::unique_lock<std::mutex> l(mu); cv.wait(l, [&] { return gen != seen; }); seen = gen; if (id > want) continue; j = job; } (*j)(id); { std::lock_guard<std::mutex> g(mu); busy--; } cv_done.notify_one(); }
  }
};
static Pool& g_pool = *new Pool();
}
// ---------------------------------------------------------------- C ABI for Rust
using namespace simt;
extern "C" {
// "order" fwd|rev|rand:SEED, "threads" N, "poison" 0|1, "strict" 0|1, "cp" late|eager. 0: done.
int simt_set_option(const char* key, const char* value) {
  init_once(); std::string k = key;
  if (k == "order") { opt.order = !strncmp(value, "rev", 3) ? 1 : !strncmp(value, "rand", 4) ? 2 : 0; if (opt.order == 2 && value[4] == ':') opt.seed = strtoull(value + 5, nullptr, 10); }
  else if (k == "threads") opt.threads = std::max(1, atoi(value));
  else if (k == "poison") opt.poison = atoi(value);
  else if (k == "strict") opt.strict = atoi(value);
  else if (k == "cp") opt.eager_cp = !strcmp(value, "eager");
  else return 1;
  return 0;
}
const Kernel* simt_find(const char* name) { init_once(); for (auto* k = g_kernels; k; k = k->next) if (!strcmp(k->name, name)) return k; return nullptr; }
int simt_nparams(const Kernel* k) { return k->nparams; }
unsigned simt_param_size(const Kernel* k, int i) { return k->psize[i]; }
void* simt_malloc(size_t n) {                      // right-aligned against a guard page: overruns (>16 B) fault, contents are NaN
  size_t pg = 4096, body = (n + 15) / 16 * 16, m = (body + pg - 1) / pg * pg + 2 * pg;
  char* p = (char*)mmap(nullptr, m, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0); if (p == MAP_FAILED) return nullptr;
  mprotect(p, pg, PROT_NONE); mprotect(p + m - pg, pg, PROT_NONE);
  char* r = p + m - pg - body; memset(r, 0xff, n);
  std::lock_guard<std::mutex> g(g_mu); g_allocs[(uintptr_t)r] = {n, p, m}; return r;
}
void simt_free(void* r) { std::lock_guard<std::mutex> g(g_mu); auto it = g_allocs.find((uintptr_t)r); if (it == g_allocs.end()) abort(); munmap(it->second.map, it->second.map_size); g_allocs.erase(it); }
int simt_launch(const Kernel* k, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned dyn, void** args, char* err, size_t errlen) {
  init_once();
  auto bad = [&](const char* m) { snprintf(err, errlen, "launch %s: %s", k->name, m); return 1; };
  if (!gx || !gy || !gz || gy > 65535 || gz > 65535) return bad("bad grid");
  if (!bx || !by || !bz || bz > 64 || (uint64_t)bx * by * bz > 1024) return bad("bad block");
  if (dyn > SMEM_MAX) return bad("too much dynamic shared memory");
  race_launch_begin();
#ifndef SIMT_ASAN
  static std::once_flag installed; std::call_once(installed, [] {
    struct sigaction sa{}; sa.sa_sigaction = on_fault; sa.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    sigaction(SIGSEGV, &sa, &old_segv); sigaction(SIGBUS, &sa, &old_bus);
  });
#endif
  uint64_t nb = (uint64_t)gx * gy * gz; std::atomic<uint64_t> next{0}; std::atomic<bool> stop{false}; std::mutex mu; bool failed = false;
  auto work = [&](int wid) {
    worker(); W->rng = opt.seed * 0x9E3779B97F4A7C15ull + wid + 1; tls.bdim = {bx, by, bz}; tls.gdim = {gx, gy, gz};
    for (uint64_t i; !stop && (i = next++) < nb;) {
      uint64_t b = opt.order == 1 ? nb - 1 - i : i; uint3 bid{(unsigned)(b % gx), (unsigned)(b / gx % gy), (unsigned)(b / gx / gy)};
      if (!run_block(k, args, bid, {bx, by, bz}, dyn)) { std::lock_guard<std::mutex> g(mu); if (!failed) { failed = true; snprintf(err, errlen, "%s", W->err); } stop = true; }
    }
    W->k = nullptr;
  };
  int nt = (int)std::min<uint64_t>(opt.threads, nb);
  if (checking) nt = 1;
  if (nt > 1) { std::function<void(int)> f = work; g_pool.run(nt - 1, f); } else work(0);
  return failed;
}
}
