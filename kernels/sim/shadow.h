// shadow.h: what the checker remembers of a block of memory: the last write and the last read of each of its cells.
//
// A cell is as large as the smallest access so far, 4, 2 or 1 bytes: neighbours that are bytes are told apart, and
// memory of floats needs a quarter of the cells.
#pragma once
#include "runtime.h"

namespace simt {
// Where an access stands: an offset into the program, or, with the highest bit, an index of a place that is known by
// file and line.
typedef uint32_t Place;
// As people read it: file and line.
std::string where(Place at);

struct Access {
  uint32_t time = 0;
  uint16_t thread = 0;
  bool several = false;  // other threads of the same time too
  enum : uint8_t { NONE, DONE, IN_FLIGHT } state = NONE;
  Place at = 0;
  uint32_t block = 0, launch = 0;
};
struct Cell {
  Access write, read;
};
struct Cells {
  Cell *begin, *end;
};

struct Shadow {
  const char* begin = nullptr;  // a multiple of 4
  size_t size = 0;
  int shift = 2;  // log2 of a cell's bytes
  std::vector<Cell> cells;

  Shadow() = default;
  Shadow(const char* begin_, size_t size_) : begin(begin_), size(size_) {}

  bool contains(const void* p, size_t n) const { return (size_t)((const char*)p - begin) + n <= size && p >= begin; }

  // The cells of an access inside the block.
  Cells find(const void* p, size_t n) {
    const size_t offset = (const char*)p - begin;
    const int fits = __builtin_ctzll(offset | n | 4);
    if (cells.empty()) cells.resize((size >> shift) + 1);
    if (fits < shift) refine(fits);
    Cell* first = &cells[offset >> shift];
    return {first, first + (n >> shift)};
  }

 private:
  void refine(int finer) {
    const size_t times = (size_t)1 << (shift - finer);
    std::vector<Cell> more;
    more.reserve(cells.size() * times);
    for (const Cell& cell : cells) more.insert(more.end(), times, cell);
    cells.swap(more);
    shift = finer;
  }
};
}  // namespace simt
