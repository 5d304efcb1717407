// New memory for large results. Fresh pages cost more than what is computed into them, and a Hessian that is
// computed again and again needs the same ones each time: on the CPU, large blocks that come back are kept
// for the next request, up to a bound.
#pragma once

#include <ATen/core/Tensor.h>

namespace hesse::kernels {

// Uninitialised.
at::Tensor fresh(at::IntArrayRef size, at::IntArrayRef stride, const at::TensorOptions& options);
at::Tensor fresh(at::IntArrayRef size, const at::TensorOptions& options);

// Frees the blocks that are kept for later requests.
void drop_idle_blocks();

}  // namespace hesse::kernels
