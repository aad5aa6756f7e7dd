#include "model/bare.h"

#include <ATen/FuncTorchTLS.h>

namespace fusum::model {

bool goes_back_at_most(const at::Tensor& x) {
  const auto& functorch = at::functorch::functorchTLSAccessor();
  if (functorch) {
    try {
      functorch->checkSupportsCppAutogradFunction();
    } catch (const c10::Error&) {
      return false;
    }
  }
  return !x._fw_grad(0).defined();
}

}  // namespace fusum::model
