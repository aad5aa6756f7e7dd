#include "model/kinds.h"

#include <iterator>
#include <sstream>
#include <string>
#include <unordered_map>
#include <unordered_set>

namespace fusum::model {
namespace {

using Names = std::unordered_set<std::string>;

// The words of a text.
Names words(const char* text) {
  std::istringstream stream(text);
  return {std::istream_iterator<std::string>(stream), std::istream_iterator<std::string>()};
}

Kind look_at(const c10::OperatorHandle& op) {
  static const Names convolutions = words("convolution _convolution");
  static const Names normalising = words("native_batch_norm _native_batch_norm_legit_no_training");
  // These may return their operand, or a view of it, but are not declared to.
  static const Names sharing = words("contiguous reshape flatten unflatten ravel reshape_as view_as");
  // These are for the way back: what they leave may lie in neither way, as it would without us.
  static const Names slicing = words("slice narrow select split split_with_sizes expand");
  // These compute the same in either layout, and keep it; as do those that go element by element.
  static const Names keeping = words(
      "_adaptive_avg_pool2d _adaptive_avg_pool2d_backward adaptive_max_pool2d adaptive_max_pool2d_backward "
      "avg_pool2d avg_pool2d_backward max_pool2d_with_indices_backward mean sum "
      "_native_batch_norm_legit native_batch_norm_backward batch_norm_backward native_group_norm "
      "native_group_norm_backward convolution_backward "
      "_upsample_bicubic2d_aa _upsample_bilinear2d_aa upsample_bicubic2d upsample_bilinear2d "
      "upsample_bilinear2d_backward upsample_nearest2d upsample_nearest2d_backward cat constant_pad_nd "
      "_prelu_kernel _prelu_kernel_backward elu_backward hardswish hardswish_ hardswish_backward hardtanh_backward "
      "leaky_relu_backward softplus_backward threshold_backward masked_fill_ alias detach clone copy_ fill_ zero_ "
      "_to_copy empty_like full_like new_empty new_full new_ones new_zeros ones_like zeros_like");
  const auto& name = op.operator_name().name;
  if (name.rfind("fusum::", 0) == 0) {
    return Kind::kKeep;  // our own read any layout
  }
  const std::string own = name.rfind("aten::", 0) == 0 ? name.substr(6) : "";
  if (convolutions.count(own) > 0) {
    return Kind::kConvolve;
  }
  if (normalising.count(own) > 0) {
    return Kind::kNormalise;
  }
  if (own == "linear") {
    return Kind::kLinear;
  }
  if (own == "max_pool2d_with_indices") {
    return Kind::kPool;
  }
  if (sharing.count(own) > 0) {
    return Kind::kShare;
  }
  if (keeping.count(own) > 0) {
    return Kind::kKeep;
  }
  if (slicing.count(own) > 0) {
    return Kind::kSlice;
  }
  if (op.hasKernelForDispatchKey(c10::DispatchKey::CompositeImplicitAutograd)) {
    return Kind::kParts;
  }
  for (const c10::Argument& result : op.schema().returns()) {
    if (result.alias_info() != nullptr && !result.alias_info()->isWrite()) {
      return Kind::kShare;
    }
  }
  if (op.hasTag(at::Tag::inplace_view)) {
    return Kind::kKeep;
  }
  // A draw goes through memory from start to end.
  return op.hasTag(at::Tag::pointwise) && !op.hasTag(at::Tag::nondeterministic_seeded) ? Kind::kKeep : Kind::kGive;
}

}  // namespace

Kind kind_of(const c10::OperatorHandle& op) {
  static thread_local std::unordered_map<c10::OperatorHandle, Kind> known;
  const auto found = known.find(op);
  return found != known.end() ? found->second : known.emplace(op, look_at(op)).first->second;
}

}  // namespace fusum::model
