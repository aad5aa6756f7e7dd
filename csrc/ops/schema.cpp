#include <torch/library.h>

TORCH_LIBRARY(fusum, m) {
#define FUSUM_OP(schema) m.def(schema, {at::Tag::pt2_compliant_tag});
#include "schema.def"
#undef FUSUM_OP
}
