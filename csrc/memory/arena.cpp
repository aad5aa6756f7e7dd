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
#include <atomic>
#include <iterator>
#include <map>
#include <mutex>
#include <set>
#include <unordered_map>
#include <utility>

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
// wanted: where, if nothing else is there.
char* map(size_t size, char* wanted = nullptr) {
  void* block = mmap(wanted, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return block == MAP_FAILED ? nullptr : static_cast<char*>(block);
}
void unmap(char* block, size_t size) { munmap(block, size); }
// An address below which nothing is for a long way, most likely: the system maps what comes next near what there is.
char* far_from_others() {
  static std::atomic<uintptr_t> regions{0};
  char* const near = map(1);
  unmap(near, 1);
  return reinterpret_cast<char*>(reinterpret_cast<uintptr_t>(near) - (++regions << 36));
}
// Whole pages, and one more: tensors of a power of two would all begin where caches hold few lines.
size_t size_of(size_t bytes) {
  static const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  return (bytes + page - 1) / page * page + page;
}
#else
constexpr bool kMaps = false;
char* map(size_t, char* = nullptr) { return nullptr; }
void unmap(char*, size_t) {}
char* far_from_others() { return nullptr; }
size_t size_of(size_t bytes) { return bytes; }
#endif

// Blocks of memory that the system has mapped, side by side: those that tensors have, and those that are free. A tensor
// takes the end of the smallest free block that holds it, where free neighbours are one block; so the first one is more
// often free, and grows.
class Blocks {
 public:
  // A block of size bytes, or null.
  char* take(size_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    char* block = end_of_free(size);
    if (block == nullptr && inside.spares) {
      release(kept_ > size ? kept_ - size : 0);
    }
    if (block == nullptr) {
      block = grown(size);
    }
    if (block == nullptr) {
      release(0);
      block = grown(size);
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
      drop(block, size);
    } else {
      join(block, size);
    }
    return true;
  }

  size_t kept() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return kept_;
  }

 private:
  // The end of the smallest free block that holds size, or null.
  char* end_of_free(size_t size) {
    const auto found = by_size_.lower_bound({size, nullptr});
    if (found == by_size_.end()) {
      return nullptr;
    }
    const auto [whole, block] = *found;
    forget(block, whole);
    if (whole > size) {
      add(block, whole - size);
    }
    return block + (whole - size);
  }

  // New memory in front of the first block, only what it lacks if that is free; or anywhere, if something is in front.
  char* grown(size_t size) {
    if (first_ == nullptr) {
      first_ = far_from_others();
    }
    const auto there = free_.find(first_);
    const size_t lacks = size - (there == free_.end() ? 0 : there->second);
    char* block = map(lacks, first_ - lacks);
    if (block == first_ - lacks && lacks < size) {
      forget(first_, size - lacks);
    } else if (block != nullptr && lacks < size) {
      unmap(block, lacks);
      block = map(size);
    }
    first_ = block == nullptr ? first_ : block;
    return block;
  }

  void drop(char* block, size_t size) {
    unmap(block, size);
    first_ = block == first_ ? block + size : first_;
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
      drop(block + left, size - left);
      if (left > 0) {
        add(block, left);
      }
    }
  }

  std::mutex mutex_;
  std::unordered_map<char*, size_t> taken_;
  std::map<char*, size_t> free_;
  std::set<std::pair<size_t, char*>> by_size_;
  char* first_ = nullptr;  // where all of them begin
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
