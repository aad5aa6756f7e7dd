// Operators inside a model on the CPU, called in our own way where nothing but time and memory tells: by interception
// in the dispatcher.
#pragma once

#include <c10/core/DispatchKey.h>

#include <memory>

namespace fusum::model {

// A spare key below that of rules: an operator that a thread calls while the key is on comes to us next.
constexpr auto kKey = c10::DispatchKey::TESTING_ONLY_GenericWrapper;

struct State;

// One call of an attribution in a thread. What it copies of a model's weights is kept as long.
// plainly: images lie inside its models as they were given. sparing: what takes more memory to be faster is not used.
class Call {
 public:
  void enter(bool plainly, bool sparing);
  void leave();

 private:
  std::shared_ptr<State> outer_;
  bool spared_ = false;
  bool included_ = false;
  bool excluded_ = false;
};

// One forward or backward in which operators are called our way. plainly: images lie as they were given. Else
// convolutions make them channels_last, by weights that are; operators that serve either layout leave them so; all
// others get what they would have got.
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

// Whether operators of the running call's way back are to be called our way, too: those on images that lie
// channels_last, and those that a checkpoint calls again, which have to save as many tensors as in the forward.
bool goes_back();

}  // namespace fusum::model
