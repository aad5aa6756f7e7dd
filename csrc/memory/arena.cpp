#include "memory/arena.h"

#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <map>
#include <mutex>
#include <new>
#include <unordered_map>
#include <vector>

namespace fusum::memory {
namespace {

// Smaller ones come from the heap, whose pages stay.
constexpr size_t kLeast = size_t{1} << 17;
// Most that is kept: between calls, and while one runs.
constexpr size_t kBetween = size_t{64} << 20;
constexpr size_t kInside = size_t{256} << 20;
// Tensors of nearly the same size share a block.
constexpr size_t kStep = size_t{1} << 14;

// How many arenas the thread is inside.
thread_local int depth = 0;

// Blocks of memory by address: those that tensors have, and those that are free.
class Blocks {
 public:
  // A free block of size bytes, or null.
  void* take(size_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = free_.find(size);
    if (found == free_.end()) {
      return nullptr;
    }
    void* block = found->second;
    free_.erase(found);
    kept_ -= size;
    return block;
  }

  void add(void* block, size_t size) {
    const std::lock_guard<std::mutex> lock(mutex_);
    sizes_.emplace(block, size);
  }

  // Whether a block is kept; else it is to be given back to the system.
  bool keep(void* block, size_t most) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = sizes_.find(block);
    if (found == sizes_.end()) {
      return false;
    }
    if (kept_ + found->second > most) {
      sizes_.erase(found);
      return false;
    }
    free_.emplace(found->second, block);
    kept_ += found->second;
    return true;
  }

  // Takes out free blocks, large ones first, until no more than most bytes are left.
  std::vector<void*> release(size_t most) {
    const std::lock_guard<std::mutex> lock(mutex_);
    std::vector<void*> released;
    while (kept_ > most) {
      const auto last = std::prev(free_.end());
      kept_ -= last->first;
      sizes_.erase(last->second);
      released.push_back(last->second);
      free_.erase(last);
    }
    return released;
  }

  size_t kept() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return kept_;
  }

 private:
  std::mutex mutex_;
  std::unordered_map<void*, size_t> sizes_;
  std::multimap<size_t, void*> free_;
  size_t kept_ = 0;
};

Blocks& blocks() {
  static auto* const all = new Blocks;  // tensors may outlive everything
  return *all;
}

// The allocator of CPU tensors: torch's own, but for large tensors of threads that are inside an arena.
class Allocator final : public c10::Allocator {
 public:
  explicit Allocator(c10::Allocator* torch) : torch_(torch) {}

  c10::DataPtr allocate(size_t bytes) override {
    if (depth == 0 || bytes < kLeast) {
      return torch_->allocate(bytes);
    }
    const size_t size = (bytes + kStep - 1) / kStep * kStep;
    void* block = blocks().take(size);
    if (block == nullptr) {
      block = make(size);
      blocks().add(block, size);
    }
    return {block, block, &give_back, c10::Device(c10::DeviceType::CPU)};
  }

  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }

  void copy_data(void* to, const void* from, size_t bytes) const override { torch_->copy_data(to, from, bytes); }

  void release(size_t most) {
    for (void* block : blocks().release(most)) {
      torch_->raw_deallocate(block);
    }
  }

  static Allocator* installed() {
    static Allocator* const only = [] {
      auto* allocator = new Allocator(c10::GetCPUAllocator());
      c10::SetCPUAllocator(allocator);
      return allocator;
    }();
    return only;
  }

 private:
  void* make(size_t size) {
    try {
      return torch_->raw_allocate(size);
    } catch (const std::exception&) {  // out of memory, with what is kept
      release(0);
      return torch_->raw_allocate(size);
    }
  }

  static void give_back(void* block) {
    if (block != nullptr && !blocks().keep(block, depth > 0 ? kInside : 0)) {
      installed()->torch_->raw_deallocate(block);
    }
  }

  c10::Allocator* const torch_;
};

}  // namespace

void Arena::enter() {
  Allocator::installed();
  ++depth;
}

void Arena::leave() {
  if (--depth == 0) {
    Allocator::installed()->release(kBetween);
  }
}

size_t kept() { return blocks().kept(); }

}  // namespace fusum::memory
