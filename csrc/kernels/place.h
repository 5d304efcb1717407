// Adds one term to dense memory in a single pass: out[offset + i . strides] += alpha * coef[i] * core[i].
#pragma once

#include <ATen/core/Tensor.h>

namespace hesse::kernels {

// `out` is contiguous; factors have one axis per stride, of full size or 1, and may be undefined (1). No two
// indices name the same element. Differentiable in all tensors when grad mode is on.
void place(const at::Tensor& out, at::IntArrayRef sizes, at::IntArrayRef strides, int64_t offset,
           const at::Tensor& coef, const at::Tensor& core, double alpha);

}  // namespace hesse::kernels
