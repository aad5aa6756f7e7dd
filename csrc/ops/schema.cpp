#include <torch/library.h>

TORCH_LIBRARY(fusum, m) {
#define FUSUM_OP(schema) m.def(schema, {at::Tag::pt2_compliant_tag});
#define FUSUM_RANDOM_OP(schema) m.def(schema, {at::Tag::pt2_compliant_tag, at::Tag::nondeterministic_seeded});
#include "schema.def"
#undef FUSUM_RANDOM_OP
#undef FUSUM_OP
}
