// Runs a function of one seed on many at once: PyTorch's vmap (functorch), without Python.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace hesse {

// One tensor per argument, and per result; either may be undefined.
using SeedFunction = std::function<std::vector<at::Tensor>(const std::vector<at::Tensor>&)>;

struct Batched {
  std::vector<at::Tensor> rows;  // [K, *S] per result
  bool looped = false;           // an op in f has no batching rule: PyTorch ran that one seed by seed
};

// f on every row of args ([K, *S], at least one of them defined). Throws what f throws when it meets a tensor
// whose values, storage or layout it cannot have because there are K of them.
Batched batched(const SeedFunction& f, const std::vector<at::Tensor>& args);

}  // namespace hesse
