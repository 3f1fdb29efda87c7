// memory.cpp: device memory, the table of kernels.
#include <sys/mman.h>
#include <unistd.h>

#include "runtime.h"

namespace simt {
std::map<uintptr_t, Allocation> allocations;
std::mutex allocations_mutex;

static Kernel* kernels;
void register_kernel(Kernel* k) {
  for (const Kernel* other = kernels; other; other = other->next) {
    if (other == k) return;
  }
  k->next = kernels;
  kernels = k;
}
}  // namespace simt

using namespace simt;
extern "C" {
const Kernel* simt_find(const char* name) {
  for (const Kernel* k = kernels; k; k = k->next) {
    if (!strcmp(k->name, name)) return k;
  }
  return nullptr;
}
int simt_nparams(const Kernel* k) { return k->nparams; }
unsigned simt_param_size(const Kernel* k, int i) { return k->psize[i]; }

// Ends (but for a multiple of 16 bytes) where a page without access begins, so that an access behind it is a fault.
// Holds NaN.
void* simt_malloc(size_t size) {
  const size_t body = (size + 15) / 16 * 16, map_size = (body + PAGE - 1) / PAGE * PAGE + 2 * PAGE;
  void* mapped = mmap(nullptr, map_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (mapped == MAP_FAILED) return nullptr;
  char* map = (char*)mapped;
  mprotect(map, PAGE, PROT_NONE);
  mprotect(map + map_size - PAGE, PAGE, PROT_NONE);
  char* block = map + map_size - PAGE - body;
  memset(block, 0xff, size);
  std::lock_guard<std::mutex> lock(allocations_mutex);
  allocations[(uintptr_t)block] = {size, map, map_size};
  return block;
}

void simt_free(void* block) {
  std::lock_guard<std::mutex> lock(allocations_mutex);
  auto it = allocations.find((uintptr_t)block);
  if (it == allocations.end()) abort();  // the caller's contract
  munmap(it->second.map, it->second.map_size);
  allocations.erase(it);
}
}
