// launch.cpp: blocks of a launch on threads of the host, and accesses that the hardware of the host refuses.
#include <sys/mman.h>

#include <atomic>
#include <condition_variable>
#include <functional>
#include <thread>

#include "runtime.h"

namespace simt {
// ---------------------------------------------------------------- faults

static const int FAULTS[] = {SIGSEGV, SIGBUS, SIGFPE};
static struct sigaction old_actions[3];  // what the program had installed before
static thread_local char fault_message[200];
static thread_local char* fault_pc;

static void fault_fails() {
  const std::string checked = checked_place();  // a stack may end while the checker looks at one of its accesses
  fail("%s at %s", fault_message, checked.empty() ? source_line(fault_pc - &__executable_start).c_str() : checked.c_str());
}

// Goes on in `fault_fails`, outside the signal, on a stack that is known to be good.
static void on_fault(int signal_number, siginfo_t* info, void* context) {
  if (!worker || !tls.self || !worker->kernel) {  // not in a kernel
    int i = 0;
    while (FAULTS[i] != signal_number) i++;
    const struct sigaction& old = old_actions[i];
    if (old.sa_flags & SA_SIGINFO) return old.sa_sigaction(signal_number, info, context);
    if (old.sa_handler != SIG_DFL && old.sa_handler != SIG_IGN) return old.sa_handler(signal_number);
    signal(signal_number, SIG_DFL);  // comes again, and ends the program
    return;
  }
  const char* address = (const char*)info->si_addr;
  const bool below_stack = address < self()->stack && address >= self()->stack - STACK;
  const char* what = below_stack ? "stack overflow of the simulated thread" : "illegal address";
  // The processor gives no address where a vector is misaligned.
  const char* maybe = signal_number == SIGSEGV && !address ? ", or misaligned vector access" : "";
  if (signal_number == SIGFPE) {
    snprintf(fault_message, sizeof fault_message, "integer division by zero");
  } else {
    snprintf(fault_message, sizeof fault_message, "%s %p (signal %d)%s", what, (const void*)address, signal_number,
             maybe);
  }
  auto& registers = ((ucontext_t*)context)->uc_mcontext.gregs;
  fault_pc = (char*)registers[REG_RIP];
  const uintptr_t top = (uintptr_t)(worker->failing_stack + sizeof worker->failing_stack - 256) & ~(uintptr_t)15;
  registers[REG_RIP] = (greg_t)(void*)fault_fails;
  registers[REG_RSP] = (greg_t)(top - 8);  // as after a call
}

static void install_fault_handler() {
  static std::once_flag installed;
  std::call_once(installed, [] {
    struct sigaction action {};
    action.sa_sigaction = on_fault;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < 3; i++) sigaction(FAULTS[i], &action, &old_actions[i]);
  });
}

// ---------------------------------------------------------------- threads of the host

static void all_stacks_free() {
  worker->free_stacks.clear();
  for (int i = worker->stacks_used - 1; i >= 0; i--) worker->free_stacks.push_back(worker->stacks + i * STACK_PITCH + PAGE);
}

struct LeaveThread {
  bool entered = false;
  ~LeaveThread() {
    if (!entered) return;
    stack_t none{};  // what was there before may have been freed by now
    none.ss_flags = SS_DISABLE;
    sigaltstack(&none, nullptr);
    munmap(worker->stacks, STACK_PITCH * MAX_THREADS);
    delete worker;
    worker = nullptr;
  }
};

static void enter_thread() {
  if (worker) return;
  worker = new Worker();
  static thread_local LeaveThread leave;  // when the thread ends
  leave.entered = true;
  void* stacks = mmap(nullptr, STACK_PITCH * MAX_THREADS, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (stacks == MAP_FAILED) abort();
  worker->stacks = (char*)stacks;
  stack_t stack{};
  stack.ss_sp = worker->signal_stack;
  stack.ss_size = sizeof worker->signal_stack;
  sigaltstack(&stack, nullptr);
}

// Threads that stay; the one that launches takes part.
struct Pool {
  std::mutex launch_mutex, mutex;
  std::condition_variable start, done;
  std::vector<std::thread> threads;
  const std::function<void(int)>* job = nullptr;
  uint64_t generation = 0;
  int wanted = 0, busy = 0;

  void run(int extra, const std::function<void(int)>& f) {
    std::lock_guard<std::mutex> one_launch(launch_mutex);
    {
      std::lock_guard<std::mutex> lock(mutex);
      while ((int)threads.size() < extra) {
        const int id = (int)threads.size() + 1;
        threads.emplace_back([this, id] { loop(id); });
      }
      job = &f;
      wanted = busy = extra;
      generation++;
    }
    start.notify_all();
    f(0);
    std::unique_lock<std::mutex> lock(mutex);
    done.wait(lock, [&] { return busy == 0; });
  }

  void loop(int id) {
    uint64_t last = 0;
    for (;;) {
      const std::function<void(int)>* f;
      {
        std::unique_lock<std::mutex> lock(mutex);
        start.wait(lock, [&] { return generation != last; });
        last = generation;
        if (id > wanted) continue;
        f = job;
      }
      (*f)(id);
      {
        std::lock_guard<std::mutex> lock(mutex);
        busy--;
      }
      done.notify_one();
    }
  }
};
static Pool& pool = *new Pool();  // its threads outlive the program's destructors

// ---------------------------------------------------------------- a block

static void reset_threads(uint3 dim, int count) {
  Worker& w = *worker;
  w.block_dim = dim;
  w.thread_count = count;
  w.barrier.arrived = 0;
  for (Warp& warp : w.warps) {
    for (WarpOp& op : warp.ops) op.arrived = 0;
  }
  for (int i = 0; i < count; i++) {
    Thread& t = w.threads[i];
    t.tid = {i % dim.x, i / dim.x % dim.y, i / dim.x / dim.y};
    t.lane = i % WARP;
    t.warp = i / WARP;
    t.line = 0;
    if (t.copies) *t.copies = CopyQueue();
  }
}

static bool run_block(const Kernel* kernel, void** args, uint3 index, uint3 dim, size_t dynamic_bytes) {
  Worker& w = *worker;
  w.kernel = kernel;
  w.args = args;
  w.dynamic_bytes = dynamic_bytes;
  w.block_serial++;
  tls.bid = index;
  const int count = dim.x * dim.y * dim.z;
  // A block that ended well leaves everything as the next of the same shape needs it.
  if (w.failed || w.block_dim.x != dim.x || w.block_dim.y != dim.y || w.thread_count != count)
    reset_threads(dim, count);
  w.failed = false;
  w.alive = count;
  w.warp_count = (count + WARP - 1) / WARP;
  w.runnable_warps = w.warp_count == 32 ? ~0u : (1u << w.warp_count) - 1;
  for (int i = 0; i < w.warp_count; i++) {
    const int lanes = std::min(WARP, count - i * WARP);
    Warp& warp = w.warps[i];
    warp.exist = warp.alive = warp.runnable = lanes == WARP ? ~0u : (1u << lanes) - 1;
    warp.pending = 0;
  }
  for (int i = 0; i < count; i++) w.threads[i].state = UNSTARTED;
  if (options.poison) {
    memset(::smem, 0xff, dynamic_bytes);
    for (const Region& array : static_arrays) memset(array.begin(), 0xff, array.size);
  }
  check_block_begins();
  int first = 0;
  if (options.order == Options::REVERSE) first = count - 1;
  if (options.order == Options::RANDOM) first = next_random() % count;
  Thread* t = &w.threads[first];
  prepare(t);
  t->state = RUNNABLE;
  tls.self = t;
  simt_switch(&w.main_sp, t->sp);
  tls.self = nullptr;
  if (w.failed) {
    all_stacks_free();
  } else {
    check_block_ends();
  }
  return !w.failed;
}

// ---------------------------------------------------------------- options

static bool set_option(const char* key, const char* value) {
  if (!strcmp(key, "order")) {
    const bool random = !strncmp(value, "rand", 4);
    options.order = random ? Options::RANDOM : !strncmp(value, "rev", 3) ? Options::REVERSE : Options::FORWARD;
    if (random && value[4] == ':') options.seed = strtoull(value + 5, nullptr, 10);
  } else if (!strcmp(key, "threads")) {
    options.threads = std::max(1, atoi(value));
  } else if (!strcmp(key, "poison")) {
    options.poison = atoi(value);
  } else if (!strcmp(key, "count")) {
    return check_counts(atoi(value));
  } else {
    return false;
  }
  return true;
}

static void initialize() {
  static std::once_flag done;
  std::call_once(done, [] {
    options.threads = std::max(1u, std::thread::hardware_concurrency());
    if (const char* value = getenv("SIMT_ORDER")) set_option("order", value);
    if (const char* value = getenv("SIMT_THREADS")) set_option("threads", value);
    if (const char* value = getenv("SIMT_POISON")) set_option("poison", value);
  });
}
}  // namespace simt

using namespace simt;
extern "C" {
// "order" fwd|rev|rand:SEED, "threads" N, "poison" 0|1, "count" 0|1 (the checker only). Returns 0 if there is such an option.
int simt_set_option(const char* key, const char* value) {
  initialize();
  return set_option(key, value) ? 0 : 1;
}

// Returns 0, or 1 with a message in `error`.
int simt_launch(const Kernel* kernel, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz,
                unsigned dynamic_bytes, void** args, char* error, size_t error_size) {
  initialize();
  auto refuse = [&](const char* why) {
    snprintf(error, error_size, "launch %s: %s", kernel->name, why);
    return 1;
  };
  if (!gx || !gy || !gz || gy > 65535 || gz > 65535) return refuse("bad grid");
  if (!bx || !by || !bz || bz > 64 || (uint64_t)bx * by * bz > MAX_THREADS) return refuse("bad block");
  if (dynamic_bytes > SMEM_MAX) return refuse("too much dynamic shared memory");
  check_launch_begins();
  install_fault_handler();
  const uint64_t blocks = (uint64_t)gx * gy * gz;
  std::atomic<uint64_t> next{0};
  std::atomic<bool> stop{false};
  std::mutex mutex;
  bool failed = false;
  auto work = [&](int id) {
    enter_thread();
    worker->random = options.seed * 0x9E3779B97F4A7C15ull + id + 1;
    tls.bdim = {bx, by, bz};
    tls.gdim = {gx, gy, gz};
    while (!stop) {
      const uint64_t i = next++;
      if (i >= blocks) break;
      const uint64_t block = options.order == Options::REVERSE ? blocks - 1 - i : i;
      const uint3 index{(unsigned)(block % gx), (unsigned)(block / gx % gy), (unsigned)(block / gx / gy)};
      if (run_block(kernel, args, index, {bx, by, bz}, dynamic_bytes)) continue;
      std::lock_guard<std::mutex> lock(mutex);
      if (!failed) snprintf(error, error_size, "%s", worker->error);
      failed = true;
      stop = true;
    }
    worker->kernel = nullptr;
  };
  const int threads = checking ? 1 : (int)std::min<uint64_t>(options.threads, blocks);  // the checker's shadow is one
  if (threads > 1) {
    const std::function<void(int)> job = work;
    pool.run(threads - 1, job);
  } else {
    work(0);
  }
  return failed;
}
}
