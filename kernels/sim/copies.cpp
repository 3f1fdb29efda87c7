// copies.cpp: cp.async. A copy arrives as late as it may, at the wait that covers it; until then its destination holds
// NaN.
#include "runtime.h"

namespace simt {
static CopyQueue& queue() {
  Thread* s = self();
  if (!s->copies) s->copies = new CopyQueue();
  return *s->copies;
}

void cp_async(void* dst, const void* src, int bytes, int src_bytes, const char* file, int line) {
  const bool size = bytes == 4 || bytes == 8 || bytes == 16;
  if (!size || (uintptr_t)dst % bytes || (src_bytes && (uintptr_t)src % bytes)) {
    fail("MISALIGNED cp.async of %d bytes at %s:%d (from %p to %p)", bytes, file, line, src, dst);
  }
  if (checking) {
    hook_async(dst, bytes, false, file, line);
    if (src_bytes) hook(src, src_bytes, false, file, line);
  }
  if (options.poison) memset(dst, 0xff, bytes);
  queue().copies.push_back({dst, src, (uint32_t)bytes, (uint32_t)src_bytes, file, line});
}

void cp_async_commit() {
  CopyQueue& q = queue();
  q.groups.push_back((uint32_t)q.copies.size());
}

void cp_async_wait(int keep) {
  if (!self()->copies) return;
  CopyQueue& q = *self()->copies;
  if (q.groups.size() <= q.arrived + keep) return;
  const size_t arrived = q.groups.size() - keep, end = q.groups[arrived - 1];
  for (size_t i = q.copies_arrived(); i < end; i++) {
    const Copy& c = q.copies[i];
    memcpy(c.dst, c.src, c.src_bytes);
    memset((char*)c.dst + c.src_bytes, 0, c.bytes - c.src_bytes);
    if (checking) hook_async(c.dst, c.bytes, true, c.file, c.line);
  }
  q.arrived = arrived;
  if (end == q.copies.size() || q.arrived >= 32) {  // forgets what has arrived
    q.copies.erase(q.copies.begin(), q.copies.begin() + end);
    q.groups.erase(q.groups.begin(), q.groups.begin() + arrived);
    for (uint32_t& group : q.groups) group -= end;
    q.arrived = 0;
  }
}
}  // namespace simt
