// Copies between the two triangles of a square matrix.
#pragma once

#include <ATen/core/Tensor.h>

namespace hesse::kernels {

// m[j, i] = m[i, j] for i < j; m is contiguous and square.
void mirror_upper(const at::Tensor& m);

}  // namespace hesse::kernels
