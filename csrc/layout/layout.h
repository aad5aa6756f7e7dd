// Images that lie channels_last inside a model, where convolutions run fastest; nothing but time tells. What batch
// normalisations keep for the way back is less there, too (frozen.h).
#pragma once

#include <c10/core/DispatchKey.h>

#include <memory>

namespace fusum::layout {

// A spare key below that of rules: an operator that a thread calls while the key is on comes to us next.
constexpr auto kKey = c10::DispatchKey::TESTING_ONLY_GenericWrapper;

struct State;

// One call of an attribution in a thread. What it copies of a model's weights is kept as long.
// plainly: images lie inside its models as they were given.
class Call {
 public:
  void enter(bool plainly);
  void leave();

 private:
  std::shared_ptr<State> outer_;
  bool included_ = false;
  bool excluded_ = false;
};

// One forward or backward in which images may lie channels_last, unless it is plainly. Convolutions make them so, by
// weights that do; operators that serve either layout leave them so; all others get what they would have got.
class On {
 public:
  void enter(bool plainly, bool back);
  void leave();

 private:
  bool included_ = false;
  bool excluded_ = false;
  bool plainly_ = false;
  bool back_ = false;
};

// Whether the running call has anything to go back through: an image that lies channels_last, or a batch normalisation.
bool used();

}  // namespace fusum::layout
