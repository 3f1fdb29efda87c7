// lines.cpp: the place in the source of an instruction, from the program's own table of lines (DWARF 4). build/sim.rs
// moves it from .debug_line, which goes when a program is stripped, to a section .simt_lines, which stays.
//
// So there is neither debug information to carry nor a library to read it with. Units of another version are skipped.
#include <elf.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "runtime.h"

namespace simt {
struct Bytes {
  const uint8_t* at;

  template <class T>
  T number() {
    T value;
    memcpy(&value, at, sizeof value);
    at += sizeof value;
    return value;
  }
  uint64_t unsigned_leb() {
    uint64_t value = 0;
    for (int shift = 0;; shift += 7) {
      const uint8_t byte = *at++;
      value |= (uint64_t)(byte & 0x7f) << shift;
      if (!(byte & 0x80)) return value;
    }
  }
  int64_t signed_leb() {
    int64_t value = 0;
    for (int shift = 0;;) {
      const uint8_t byte = *at++;
      value |= (int64_t)(byte & 0x7f) << shift;
      shift += 7;
      if (!(byte & 0x80)) return shift < 64 && (byte & 0x40) ? value - ((int64_t)1 << shift) : value;
    }
  }
  const char* text() {
    const char* begin = (const char*)at;
    at += strlen(begin) + 1;
    return begin;
  }
};

// Searches one unit, which ends at `end`. Its length has been read.
static bool search(Bytes unit, const uint8_t* end, uint64_t address, std::string& found) {
  if (unit.number<uint16_t>() != 4) return false;
  const uint32_t header_length = unit.number<uint32_t>();
  Bytes program{unit.at + header_length};
  const int unit_bytes = unit.number<uint8_t>();
  unit.number<uint16_t>();  // operations of an instruction, and whether rows begin statements
  const int line_base = unit.number<int8_t>(), line_range = unit.number<uint8_t>(), special = unit.number<uint8_t>();
  const uint8_t* operands = unit.at;
  unit.at += special - 1;
  while (*unit.at) unit.text();  // folders
  unit.at++;
  std::vector<const char*> files;
  while (*unit.at) {
    files.push_back(unit.text());
    for (int i = 0; i < 3; i++) unit.unsigned_leb();  // folder, time, size
  }
  if (files.empty() || line_range == 0) return false;

  struct Row {
    uint64_t address = 0, file = 1;
    int64_t line = 1;
  } row, last;
  bool inside = false;  // `last` is a row of this sequence
  auto add = [&] {
    const bool hit = inside && last.address <= address && address < row.address && last.file - 1 < files.size();
    if (hit) found = std::string(files[last.file - 1]) + ":" + std::to_string(last.line);
    last = row;
    inside = true;
    return hit;
  };
  while (program.at < end) {
    const int code = program.number<uint8_t>();
    if (code >= special) {
      row.address += (uint64_t)((code - special) / line_range * unit_bytes);
      row.line += line_base + (code - special) % line_range;
      if (add()) return true;
      continue;
    }
    switch (code) {
      case 0: {
        const uint64_t length = program.unsigned_leb();
        Bytes operand = program;
        program.at += length;
        const int extended = operand.number<uint8_t>();
        if (extended == 1) {  // end of a sequence
          if (add()) return true;
          row = Row();
          inside = false;
        } else if (extended == 2) {
          row.address = operand.number<uint64_t>();
        }
        break;
      }
      case 1:
        if (add()) return true;
        break;
      case 2:
        row.address += program.unsigned_leb() * unit_bytes;
        break;
      case 3:
        row.line += program.signed_leb();
        break;
      case 4:
        row.file = program.unsigned_leb();
        break;
      case 8:
        row.address += (uint64_t)((255 - special) / line_range * unit_bytes);
        break;
      case 9:
        row.address += program.number<uint16_t>();
        break;
      default:  // what does not matter here
        for (int i = 0; i < operands[code - 1]; i++) program.unsigned_leb();
    }
  }
  return false;
}

std::string source_line(size_t pc) {
  std::string found = "?";
  const int file = open("/proc/self/exe", O_RDONLY);
  struct stat status;
  if (file < 0) return found;
  const bool sized = fstat(file, &status) == 0;
  void* map = sized ? mmap(nullptr, status.st_size, PROT_READ, MAP_PRIVATE, file, 0) : MAP_FAILED;
  close(file);
  if (map == MAP_FAILED) return found;
  const auto* image = (const uint8_t*)map;
  const auto* header = (const Elf64_Ehdr*)image;
  const auto* sections = (const Elf64_Shdr*)(image + header->e_shoff);
  const char* names = (const char*)image + sections[header->e_shstrndx].sh_offset;
  for (int i = 0; i < header->e_shnum; i++) {
    if (strcmp(names + sections[i].sh_name, ".simt_lines") || sections[i].sh_flags & SHF_COMPRESSED) continue;
    Bytes unit{image + sections[i].sh_offset};
    const uint8_t* end = unit.at + sections[i].sh_size;
    while (unit.at + 4 < end) {
      const uint32_t length = unit.number<uint32_t>();
      if (length >= 0xfffffff0u || unit.at + length > end) break;  // 64-bit units are not written by g++
      if (search(unit, unit.at + length, pc, found)) break;
      unit.at += length;
    }
  }
  munmap(map, status.st_size);
  return found;
}
}  // namespace simt
