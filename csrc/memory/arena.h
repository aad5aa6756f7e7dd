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

// Bytes that are kept at present.
size_t kept();

}  // namespace fusum::memory
