// What each operator is to us.
#pragma once

#include <ATen/core/dispatch/Dispatcher.h>

namespace fusum::model {

enum class Kind {
  kConvolve,   // may make images lie channels_last
  kKeep,       // computes the same in either layout, and keeps it
  kNormalise,  // a batch normalisation, which does so, too
  kLinear,     // may be made faster
  kPool,       // may be, too; computes the same in either layout, and keeps it
  kParts,      // is made of others, which are asked
  kSlice,      // returns a part of its operand
  kShare,      // returns its operand's memory otherwise: is given images as they would have lain, as are
  kGive        // all others
};

Kind kind_of(const c10::OperatorHandle& op);

}  // namespace fusum::model
