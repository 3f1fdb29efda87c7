// memory.cpp: device memory, the table of kernels, static shared arrays.
#include <elf.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime.h"

#define TEXT_OF(x) #x
#define TEXT(x) TEXT_OF(x)

namespace simt {
std::vector<Region> static_arrays;
std::map<uintptr_t, Allocation> allocations;
std::mutex allocations_mutex;

// A static __shared__ array is a thread-local variable of a function: its symbol is `_ZZ<function>E<name>`. The
// program's own table of symbols tells where each lies, to poison it and to name it in messages.
void find_static_arrays() {
  const int file = open("/proc/self/exe", O_RDONLY);
  struct stat status;
  if (file < 0) return;
  if (fstat(file, &status)) {
    close(file);
    return;
  }
  void* map = mmap(nullptr, status.st_size, PROT_READ, MAP_PRIVATE, file, 0);
  close(file);
  if (map == MAP_FAILED) return;
  const char* image = (const char*)map;
  const auto* header = (const Elf64_Ehdr*)image;
  const auto* sections = (const Elf64_Shdr*)(image + header->e_shoff);
  uint64_t anchor = 0;
  bool found = false;
  for (int pass = 0; pass < 2; pass++) {  // the anchor, then the arrays
    for (int i = 0; i < header->e_shnum; i++) {
      if (sections[i].sh_type != SHT_SYMTAB) continue;
      const auto* symbols = (const Elf64_Sym*)(image + sections[i].sh_offset);
      const char* names = image + sections[sections[i].sh_link].sh_offset;
      for (size_t j = 0; j < sections[i].sh_size / sizeof *symbols; j++) {
        const Elf64_Sym& symbol = symbols[j];
        if (ELF64_ST_TYPE(symbol.st_info) != STT_TLS) continue;
        const char* name = names + symbol.st_name;
        if (pass == 0 && !strcmp(name, TEXT(simt_tls_anchor))) {
          anchor = symbol.st_value;
          found = true;
        }
        if (pass == 1 && found && !strncmp(name, "_ZZ", 3) && strncmp(name, "_ZZN4simt", 9) && symbol.st_size) {
          static_arrays.push_back({strdup(name), (ptrdiff_t)(symbol.st_value - anchor), symbol.st_size});
        }
      }
    }
  }
  munmap(map, status.st_size);
}

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
