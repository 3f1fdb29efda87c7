// count.cpp: what a launch asks of memory: bytes, sectors, bank conflicts.
//
// The lanes of a warp are fibers that run one after the other, so a warp's access has to be put together again: from
// the accesses of its lanes at the same place in the program, each lane's first with the other lanes' first, the second
// with the second, counted anew from the last point that all lanes reached together (an operation of the whole warp, a
// barrier of the block, the begin of the block). Parts of 4, 8 or 16 aligned bytes that all lanes read or write one after
// another are one access: g++ takes vectors apart, at one place after another, and in shared memory, whose alignment it
// knows, nvcc puts together what a loop goes through.
//
// Then, as on the hardware,
// - global memory moves in sectors of 32 bytes. Distinct ones of a launch are what main memory has to give or take at
//   least; those that are read only after the launch wrote them are not among the read ones. Those of every access of a
//   warp, added up, are what the caches are asked for; the fewest possible hold as many bytes as the lanes ask for.
// - shared memory has 32 banks of 4 bytes. Lanes go together, 32 of them with 4 bytes or less, 16 with 8, 8 with 16, and
//   need a wavefront for each word that the busiest bank has to give; equal words count once.
//
// What this cannot see: how nvcc schedules, merges, repeats or drops accesses (it is g++ -O1 whose accesses are counted);
// hits in the caches; registers that are spilled. Where lanes take a branch in some rounds of a loop only, and do not
// meet in between, their accesses are put together by number and not by round.
#include "count.h"

#include <array>
#include <unordered_map>

namespace simt {
bool counting;

static constexpr int SECTOR = 32, BANKS = 32, WIDEST = 16;

// In the order of `Counts` in src/device/sim/counts.rs.
struct Counts {
  uint64_t read_sectors, written_sectors;              // distinct
  uint64_t accesses, sectors, fewest_sectors;          // of warps in global memory
  uint64_t bytes, bytes_of_16;                         // that lanes ask for there; by accesses of 16 bytes
  uint64_t shared_accesses, wavefronts, fewest_wavefronts;
  uint64_t atomics;                                    // of lanes
};
static Counts counts;

// ---------------------------------------------------------------- distinct sectors

static constexpr int PAGE_SECTORS = 4096;
struct SectorPage {
  uint64_t read[PAGE_SECTORS / 64] = {}, written[PAGE_SECTORS / 64] = {};
};
static std::unordered_map<uint64_t, SectorPage> pages;
static SectorPage* last_page;
static uint64_t last_page_number;

static void mark(uintptr_t p, size_t n, bool write) {
  for (uint64_t sector = p / SECTOR; sector <= (p + n - 1) / SECTOR; sector++) {
    const uint64_t number = sector / PAGE_SECTORS;
    if (!last_page || number != last_page_number) {
      last_page = &pages[number];
      last_page_number = number;
    }
    const size_t word = sector % PAGE_SECTORS / 64;
    const uint64_t bit = 1ull << sector % 64;
    if (write) {
      counts.written_sectors += !(last_page->written[word] & bit);
      last_page->written[word] |= bit;
    } else if (!((last_page->read[word] | last_page->written[word]) & bit)) {
      counts.read_sectors++;
      last_page->read[word] |= bit;
    }
  }
}

// ---------------------------------------------------------------- accesses of warps

struct Group {
  uintptr_t address[WARP];
  uint32_t mask;
  Place at;
  uint8_t size;
  bool shared, write, taken;  // taken: a part of another
};
// What is known of a place since the lanes met: how often each has passed it, and the accesses in this order.
struct Site {
  uint64_t key = 0;
  uint32_t epoch = 0;
  std::array<uint32_t, WARP> passed;
  std::vector<uint32_t> groups;
};
struct WarpAccesses {
  std::vector<Site> sites = std::vector<Site>(64);  // a hash table, at most half full
  size_t known = 0;
  uint32_t epoch = 1;
  std::vector<Group> groups;  // in the order of the lane that came first
};
static WarpAccesses warps[MAX_WARPS];
// Memory is finite: a lane that goes on for longer is not put together with those that follow.
static constexpr size_t MOST_GROUPS = 1 << 17;

static Site& find_slot(std::vector<Site>& sites, uint64_t key) {
  size_t i = (key * 0x9E3779B97F4A7C15ull) >> 32;
  for (;; i++) {
    Site& site = sites[i & (sites.size() - 1)];
    if (site.key == key || !site.key) return site;
  }
}

static Site& site_of(WarpAccesses& w, uint64_t key) {
  Site* site = &find_slot(w.sites, key);
  if (!site->key) {
    if (2 * ++w.known > w.sites.size()) {
      std::vector<Site> more(w.sites.size() * 2);
      for (Site& old : w.sites) {
        if (old.key) find_slot(more, old.key) = std::move(old);
      }
      w.sites.swap(more);
      site = &find_slot(w.sites, key);
    }
    site->key = key;
  }
  if (site->epoch != w.epoch) {
    site->epoch = w.epoch;
    site->passed.fill(0);
    site->groups.clear();
  }
  return *site;
}

static void add(bool shared, uintptr_t p, size_t n, bool write, Place at) {
  const ThreadPub* self = tls.self;
  WarpAccesses& w = warps[self->warp];
  if (w.groups.size() >= MOST_GROUPS) count_warp(self->warp);
  Site& site = site_of(w, (uint64_t)at << 8 | n << 2 | (uint64_t)shared << 1 | (uint64_t)write);
  const uint32_t nth = site.passed[self->lane]++;
  if (nth >= site.groups.size()) {
    site.groups.push_back((uint32_t)w.groups.size());
    w.groups.push_back(Group{{}, 0, at, (uint8_t)n, shared, write, false});
  }
  Group& group = w.groups[site.groups[nth]];
  group.address[self->lane] = p;
  group.mask |= 1u << self->lane;
}

void count_access(bool shared, const void* p_, size_t n, bool write, Place at) {
  const uintptr_t p = (uintptr_t)p_;
  if (!shared) mark(p, n, write);
  for (size_t done = 0; done < n; done += WIDEST) add(shared, p + done, std::min<size_t>(n - done, WIDEST), write, at);
}

void count_atomic(bool shared, const void* p, size_t n, Place at) {
  counts.atomics++;
  if (!shared) mark((uintptr_t)p, n, false);
  count_access(shared, p, n, true, at);
}

// ---------------------------------------------------------------- what they cost

// Sums of a line of the kernels.
struct Line {
  uint64_t accesses, needed, fewest;
};
typedef std::pair<const char*, std::pair<Place, int>> LineKey;  // kernel, place, 2 shared + 1 write
static std::map<LineKey, Line> lines;

// Sorts, which mostly is nothing to do, and drops what is there twice. Returns how many are left.
static int distinct(uint64_t* values, int n) {
  if (!std::is_sorted(values, values + n)) std::sort(values, values + n);
  return (int)(std::unique(values, values + n) - values);
}

static void cost_of_global(const Group& g, Line& cost) {
  uint64_t sectors[2 * WARP], begins[WARP];
  int n = 0, lanes = 0;
  for (uint32_t rest = g.mask; rest; rest &= rest - 1) {
    const uintptr_t p = g.address[__builtin_ctz(rest)];
    begins[lanes++] = p;
    sectors[n++] = p / SECTOR;
    if ((p + g.size - 1) / SECTOR != p / SECTOR) sectors[n++] = p / SECTOR + 1;
  }
  const uint64_t asked = (uint64_t)lanes * g.size;
  lanes = distinct(begins, lanes);
  uint64_t bytes = 0, end = 0;  // of the union
  for (int i = 0; i < lanes; i++) {
    bytes += begins[i] + g.size - std::max(begins[i], std::min(end, begins[i] + g.size));
    end = begins[i] + g.size;
  }
  cost = {1, (uint64_t)distinct(sectors, n), (bytes + SECTOR - 1) / SECTOR};
  counts.accesses++;
  counts.sectors += cost.needed;
  counts.fewest_sectors += cost.fewest;
  counts.bytes += asked;
  if (g.size == 16) counts.bytes_of_16 += asked;
}

static void cost_of_shared(const Group& g, Line& cost) {
  const int together = g.size <= 4 ? WARP : g.size <= 8 ? WARP / 2 : WARP / 4;
  cost = {1, 0, 0};
  for (int first = 0; first < WARP; first += together) {
    uint64_t words[5 * WARP];
    int n = 0;
    for (int lane = first; lane < first + together; lane++) {
      if (!(g.mask >> lane & 1)) continue;
      const uintptr_t p = g.address[lane];
      for (uint64_t word = p / 4; word <= (p + g.size - 1) / 4; word++) words[n++] = word;
    }
    if (!n) continue;
    n = distinct(words, n);
    int busy[BANKS] = {}, busiest = 0;
    for (int i = 0; i < n; i++) busiest = std::max(busiest, ++busy[words[i] % BANKS]);
    cost.needed += busiest;
    cost.fewest++;
  }
  counts.shared_accesses++;
  counts.wavefronts += cost.needed;
  counts.fewest_wavefronts += cost.fewest;
}

// Where `next` lies from the begin of the `width` bytes in which `g` lies, if that is the same for all lanes; else -1.
static int offset_in(const Group& g, const Group& next, int width) {
  if (next.taken || next.mask != g.mask || next.shared != g.shared || next.write != g.write) return -1;
  int offset = -1;
  for (uint32_t rest = g.mask; rest; rest &= rest - 1) {
    const int lane = __builtin_ctz(rest);
    const uintptr_t from_begin = next.address[lane] - (g.address[lane] & -(uintptr_t)width);
    if (from_begin + next.size > (uintptr_t)width || (offset >= 0 && from_begin != (uintptr_t)offset)) return -1;
    offset = (int)from_begin;
  }
  return offset;
}

// Puts the parts of a vector together with the first of them, at place `i`. They stand close behind it, since a thread
// reads or writes them in a row, at most with those of other vectors in between.
static void put_together(std::vector<Group>& groups, size_t i) {
  static constexpr size_t CLOSE = 24;
  Group& first = groups[i];
  const size_t end = std::min(groups.size(), i + CLOSE);
  for (int width = WIDEST; width > first.size; width /= 2) {
    const int offset = offset_in(first, first, width);
    if (offset < 0) continue;
    uint32_t covered = ((1u << first.size) - 1) << offset;
    std::array<size_t, WIDEST> parts;
    int found = 0;
    for (size_t j = i + 1; j < end && covered != (1u << width) - 1; j++) {
      if (!first.shared && groups[j].at == first.at) continue;
      const int at = offset_in(first, groups[j], width);
      if (at < 0) continue;
      const uint32_t more = ((1u << groups[j].size) - 1) << at;
      if (covered & more) continue;  // another access to the same
      covered |= more;
      parts[found++] = j;
    }
    if (covered != (1u << width) - 1) continue;
    for (int k = 0; k < found; k++) groups[parts[k]].taken = true;
    for (uint32_t rest = first.mask; rest; rest &= rest - 1) first.address[__builtin_ctz(rest)] &= -(uintptr_t)width;
    first.size = (uint8_t)width;
    return;
  }
}

void count_warp(int warp) {
  WarpAccesses& w = warps[warp];
  for (size_t i = 0; i < w.groups.size(); i++) {
    if (w.groups[i].taken) continue;
    put_together(w.groups, i);
    const Group& g = w.groups[i];
    Line cost;
    g.shared ? cost_of_shared(g, cost) : cost_of_global(g, cost);
    if (cost.needed == cost.fewest) continue;
    Line& line = lines[{worker->kernel->name, {g.at, 2 * g.shared + g.write}}];
    line = {line.accesses + cost.accesses, line.needed + cost.needed, line.fewest + cost.fewest};
  }
  w.groups.clear();
  w.epoch++;
}

void count_all_warps() {
  for (int w = 0; w < worker->warp_count; w++) count_warp(w);
}

void count_launch_begins() {
  counts = Counts{};
  pages.clear();
  last_page = nullptr;
  for (WarpAccesses& w : warps) {
    w.groups.clear();
    w.epoch++;
  }
}
}  // namespace simt

using namespace simt;
extern "C" {
// The counters of the last launch, at most `n` of them, in the order of `Counts`. Returns how many there are.
int simt_counts(uint64_t* values, int n) {
  const int all = sizeof(Counts) / sizeof(uint64_t);
  memcpy(values, &counts, std::min(n, all) * sizeof(uint64_t));
  return all;
}

// The lines that needed more sectors or wavefronts than the fewest possible, since the last call, the worst first:
// kernel, file and line, what, accesses of warps there that did, needed, fewest. Returns how long the text is, of which
// at most `size` bytes are written.
size_t simt_count_lines(char* text, size_t size) {
  typedef std::pair<std::string, Line> Row;
  std::map<std::string, Line> by_line;
  static const char* const WHAT[] = {"global read", "global write", "shared read", "shared write"};
  for (auto& [key, line] : lines) {
    Line& sum = by_line[std::string(key.first) + " " + where(key.second.first) + " " + WHAT[key.second.second]];
    sum = {sum.accesses + line.accesses, sum.needed + line.needed, sum.fewest + line.fewest};
  }
  std::vector<Row> rows(by_line.begin(), by_line.end());
  std::stable_sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) {
    return a.second.needed - a.second.fewest > b.second.needed - b.second.fewest;
  });
  std::string all;
  for (auto& [name, line] : rows) {
    all += name;
    for (uint64_t number : {line.accesses, line.needed, line.fewest}) all += " " + std::to_string(number);
    all += "\n";
  }
  lines.clear();
  memcpy(text, all.data(), std::min(size, all.size()));
  return all.size();
}
}
