// Rules that change the backward pass, by interception in the dispatcher: on for one thread, during one forward.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>
#include <c10/core/DispatchKey.h>

#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <unordered_map>

#include "rules/tape.h"

namespace fusum::rules {

// A spare key above autograd: an operator that a thread calls while the key is on comes to us first.
constexpr auto kKey = c10::DispatchKey::TESTING_ONLY_GenericMode;

// What to do with an operator of which an operand depends on the explained tensors: leave it as it is; take it apart;
// leave it as it is if one operand varies; follow its rule; it is ReLU, whose rules are here.
enum class Action { kPlain, kParts, kOne, kRule, kRelu };
enum class Relu { kFollow, kRescale, kGuided, kDeconvolution };

// The actions of one rule. look is asked once for each operator, follow computes the operators that have a rule.
class Table {
 public:
  using Look = std::function<Action(const c10::OperatorHandle&)>;
  using Follow = std::function<void(const c10::OperatorHandle&, torch::jit::Stack*)>;

  Table(Relu relu, Look look, Follow follow) : relu(relu), follow(std::move(follow)), look_(std::move(look)) {}

  Action find(const c10::OperatorHandle& op);

  const Relu relu;
  const Follow follow;

 private:
  const Look look_;
  std::mutex mutex_;
  std::unordered_map<c10::OperatorHandle, Action> known_;
};

// One forward under a rule; the baselines' own where it is recording.
struct Pass {
  std::shared_ptr<Table> table;
  c10::intrusive_ptr<Tape> tape;
  bool recording;
  double eps;
};

// The pass of the calling thread, or null.
std::shared_ptr<Pass>& current();

// Makes a pass, or none, the calling thread's, with the key on, or off; leave gives it what it had before.
class On {
 public:
  void enter(std::shared_ptr<Pass> pass);
  void leave();

 private:
  std::shared_ptr<Pass> outer_;
  bool included_ = false;
  bool excluded_ = false;
};

// ReLU under the rule of a pass.
at::Tensor relu(const Pass& pass, const at::Tensor& x);

}  // namespace fusum::rules
