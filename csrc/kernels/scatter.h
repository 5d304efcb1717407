// A product of two lazy factors, added at places given by index.
#pragma once

#include <ATen/core/Tensor.h>

namespace hesse::kernels {

// Element i along an axis lies `out` * i + sum over `by` of step * index[i] further on.
struct PlacedAxis {
  struct By {
    at::Tensor index;  // [n], int64; undefined: none
    int64_t step = 0;
  };
  int64_t n;
  int64_t out = 0;
  By by[2];
};

// out[offset + places of i] += alpha * a[i] * b[i] for contiguous `out`. Factors have one axis per axis, of
// full size or 1, and may be undefined (1). Several elements may meet at one place; they are added in a fixed
// order if PyTorch is asked for deterministic algorithms. Differentiable in the factors when grad mode is on.
void scatter_add(const at::Tensor& out, c10::ArrayRef<PlacedAxis> axes, int64_t offset, const at::Tensor& a,
                 const at::Tensor& b, double alpha);

}  // namespace hesse::kernels
