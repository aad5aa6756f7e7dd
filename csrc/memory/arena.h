// Memory of large CPU tensors that is kept for the next ones while a call runs.
#pragma once

#include <cstddef>

namespace fusum::memory {

// The system hands out memory page by page, at the first touch of each: that takes as long as many an operator that
// fills them. So while a thread is inside an Arena, large tensors that it frees are kept for those that it makes next,
// also for those of its next Arena, up to a limit. sparing: a new block takes the place of others that are kept, so
// that no more memory is held than without an Arena.
class Arena {
 public:
  void enter(bool sparing);
  void leave();
};

// Whether a thread is inside an Arena, whether that is sparing, and the thread's number in a parallel loop.
struct Inside {
  int depth = 0;
  bool spares = false;
  int number = 0;

  static Inside here();
};

// While it lives, its thread is inside what the thread is that began a parallel loop, unless that is sparing.
class Joined {
 public:
  explicit Joined(const Inside& other);
  ~Joined();
  Joined(const Joined&) = delete;
  Joined& operator=(const Joined&) = delete;

 private:
  const Inside before_;
};

// Bytes that are kept at present.
size_t kept();

}  // namespace fusum::memory
