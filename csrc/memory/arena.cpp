#include "memory/arena.h"

#include <ATen/Parallel.h>
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#if __has_include(<sys/mman.h>)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <array>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

namespace fusum::memory {
namespace {

// Smaller ones come from the heap, whose pages stay.
constexpr size_t kLeast = size_t{1} << 17;
// Most that is kept, and most of what a thread of a parallel loop gives.
constexpr size_t kMost = size_t{256} << 20;
constexpr size_t kMostOfWorker = size_t{16} << 20;
constexpr int kWorkers = 64;

thread_local Inside inside;

#if __has_include(<sys/mman.h>)
constexpr bool kMaps = true;
char* map(size_t size) {
  void* block = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return block == MAP_FAILED ? nullptr : static_cast<char*>(block);
}
void unmap(char* block, size_t size) { munmap(block, size); }
// Tensors of about the same size have blocks of one size, at most a sixteenth larger. It is whole pages, and one more:
// tensors of a power of two would all begin where caches hold few lines.
size_t size_of(size_t bytes) {
  static const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  size_t step = page;
  while (32 * step <= bytes) {
    step *= 2;
  }
  return (bytes + step - 1) / step * step + page;
}
#else
constexpr bool kMaps = false;
char* map(size_t) { return nullptr; }
void unmap(char*, size_t) {}
size_t size_of(size_t bytes) { return bytes; }
#endif

// Blocks of memory that the system has mapped: those that tensors have, and those that are free. A tensor takes the
// block that was given last, and is still in the caches, if it is of just its size; or else the front of the smallest
// free block that holds it, where free neighbours are one block.
class Blocks {
 public:
  // A block of size bytes, or null.
  char* take(size_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (char* again = take_again(size)) {
      return again;
    }
    const auto found = by_size_.lower_bound({size, nullptr});
    if (found != by_size_.end()) {
      const auto [whole, block] = *found;
      forget(block, whole);
      if (whole > size) {
        add(block + size, whole - size);
      }
      taken_.emplace(block, size);
      return block;
    }
    if (inside.spares) {
      release(kept_ > size ? kept_ - size : 0);
    }
    char* block = map(size);
    if (block == nullptr) {
      release(0);
      block = map(size);
    }
    if (block != nullptr) {
      taken_.emplace(block, size);
    }
    return block;
  }

  // Whether a block is one of these; it is kept, but no more than most bytes are.
  bool give(char* block, size_t most) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = taken_.find(block);
    if (found == taken_.end()) {
      return false;
    }
    const size_t size = found->second;
    taken_.erase(found);
    if (kept_ + size > most) {
      unmap(block, size);
      return true;
    }
    recent_.emplace_back(block, size);
    kept_ += size;
    return true;
  }

  size_t kept() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return kept_;
  }

 private:
  // The block of just this size that was given last, or null; then all recent ones are joined to the others.
  char* take_again(size_t size) {
    const auto last =
        std::find_if(recent_.rbegin(), recent_.rend(), [size](const auto& given) { return given.second == size; });
    if (last != recent_.rend()) {
      char* const block = last->first;
      recent_.erase(std::next(last).base());
      kept_ -= size;
      taken_.emplace(block, size);
      return block;
    }
    for (const auto& [block, bytes] : recent_) {
      kept_ -= bytes;
      join(block, bytes);
    }
    recent_.clear();
    return nullptr;
  }

  void join(char* block, size_t size) {
    const auto next = free_.lower_bound(block);
    if (next != free_.end() && next->first == block + size) {
      const auto [behind, more] = *next;
      forget(behind, more);
      size += more;
    }
    const auto after = free_.lower_bound(block);
    if (after != free_.begin()) {
      const auto [before, more] = *std::prev(after);
      if (before + more == block) {
        forget(before, more);
        block = before;
        size += more;
      }
    }
    add(block, size);
  }

  void add(char* block, size_t size) {
    free_.emplace(block, size);
    by_size_.emplace(size, block);
    kept_ += size;
  }

  void forget(char* block, size_t size) {
    free_.erase(block);
    by_size_.erase({size, block});
    kept_ -= size;
  }

  // Gives back the ends of free blocks, of large ones first, until no more than most bytes are left.
  void release(size_t most) {
    while (kept_ > most) {
      const auto [size, block] = *by_size_.rbegin();
      const size_t left = size - std::min(size, kept_ - most);
      forget(block, size);
      unmap(block + left, size - left);
      if (left > 0) {
        add(block, left);
      }
    }
  }

  std::mutex mutex_;
  std::unordered_map<char*, size_t> taken_;
  std::map<char*, size_t> free_;
  std::set<std::pair<size_t, char*>> by_size_;
  std::vector<std::pair<char*, size_t>> recent_;  // free as well, in the order in which they were given
  size_t kept_ = 0;
};

// Threads of a parallel loop have blocks of their own: what another core has written is slow to reach.
Blocks& blocks_of(int number) {
  static auto* const all = new std::array<Blocks, kWorkers>;  // tensors may outlive everything
  return (*all)[number % kWorkers];
}

// Whether it was a block of these.
bool give(char* block) {
  for (int i = 0; i < kWorkers; ++i) {
    const int number = (inside.number + i) % kWorkers;
    const size_t most = number == 0 ? kMost : kMostOfWorker;
    if (blocks_of(number).give(block, inside.depth > 0 ? most : 0)) {
      return true;
    }
  }
  return false;
}

// The allocator of CPU tensors: torch's own, but for large tensors of threads that are inside an arena.
class Allocator final : public c10::Allocator {
 public:
  explicit Allocator(c10::Allocator* torch) : torch_(torch) {}

  c10::DataPtr allocate(size_t bytes) override {
    if (!kMaps || inside.depth == 0 || bytes < kLeast) {
      return torch_->allocate(bytes);
    }
    char* block = blocks_of(inside.number).take(size_of(bytes));
    TORCH_CHECK(block != nullptr, "DefaultCPUAllocator: not enough memory: you tried to allocate ", bytes, " bytes.");
    return {block, block, &give_back, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }

  void copy_data(void* to, const void* from, size_t bytes) const override { torch_->copy_data(to, from, bytes); }

  static Allocator* installed() {
    static Allocator* const only = [] {
      auto* allocator = new Allocator(c10::GetCPUAllocator());
      c10::SetCPUAllocator(allocator);
      return allocator;
    }();
    return only;
  }

 private:
  static void give_back(void* block) {
    if (block != nullptr && !give(static_cast<char*>(block))) {
      installed()->torch_->raw_deallocate(block);
    }
  }

  c10::Allocator* const torch_;
};

}  // namespace

void Arena::enter(bool sparing) {
  Allocator::installed();
  if (inside.depth++ == 0) {
    inside.spares = sparing;
  }
}

void Arena::leave() { --inside.depth; }

Inside Inside::here() { return inside; }

Joined::Joined(const Inside& other) : before_(inside) {
  const int number = at::get_thread_num();
  if (number > 0) {
    inside = {other.spares ? 0 : other.depth, false, number};
  }
}

Joined::~Joined() { inside = before_; }

size_t kept() {
  size_t bytes = 0;
  for (int number = 0; number < kWorkers; ++number) {
    bytes += blocks_of(number).kept();
  }
  return bytes;
}

}  // namespace fusum::memory
