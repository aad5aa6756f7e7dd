// What the baselines left behind at each ReLU, and how the examples' tensors are paired with it.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/core/ivalue.h>

#include <string>
#include <vector>

namespace fusum::rules {

// Baselines stand against the examples: row by row where there are as many and each is 0; each of them against every
// example; or each of them, example after example, against their own.
struct Tape : torch::CustomClassHolder {
  explicit Tape(int64_t references) : references(references) {}

  int64_t references;
  int64_t each = 0;
  int64_t examples = 0;
  // The baselines that the running backward is for, and its level where it is vmapped.
  int64_t first = 0;
  int64_t count = 1;
  int64_t level = 0;
  // Why next did not find a value. Nothing is thrown: TorchScript's interpreter may crash on what an operator throws.
  std::string failure;
  bool unpairable = false;
  bool overwritten = false;
  // Values are copied, for models that write over them.
  bool copies = false;

  void record(const at::Tensor& x);
  void start(int64_t rows);
  // The baselines' value where the examples' is x; undefined where there is none.
  at::Tensor next(const at::Tensor& x);
  bool finished() const { return at_ == values_.size(); }
  // ref so that it broadcasts against x, and stands for each baseline of a vmapped backward.
  at::Tensor pair(const at::Tensor& ref, const at::Tensor& x) const;
  bool together() const { return each == 0 && references == examples; }

 private:
  bool require(bool holds, const char* otherwise);

  std::vector<at::Tensor> values_;
  std::vector<uint32_t> versions_;
  size_t at_ = 0;
};

}  // namespace fusum::rules
