// The lower triangle of a square matrix, row by row in one vector.
#pragma once

#include <ATen/core/Tensor.h>

namespace hesse::kernels {

// packed[r (r + 1) / 2 + c] += m[r - row, c - column] where c <= r: a part of the matrix that begins at (row,
// column) goes to its places, which are still zero. Differentiable in m when grad mode is on.
void pack_lower(const at::Tensor& packed, const at::Tensor& m, int64_t row, int64_t column);

}  // namespace hesse::kernels
