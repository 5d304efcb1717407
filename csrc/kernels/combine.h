// The one pass over seed-sized data: a product of two lazy factors, written, added or summed into dense
// memory,
//
//     out[offset + i . strides] (+)= alpha * a[i] * b[i].
//
// An axis whose stride is 0 is summed over.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <vector>

namespace hesse::kernels {

enum class Into { write, add };

// Factors have one axis per size, of full size or 1, and may be undefined (1). Strides are those of `out`,
// from its first element; no two indices name the same element but along the axes summed over. What is
// written fills `out`. Differentiable in all tensors when grad mode is on.
void combine(Into into, const at::Tensor& out, at::IntArrayRef sizes, at::IntArrayRef strides, int64_t offset,
             const at::Tensor& a, const at::Tensor& b, double alpha);

// One of the things that add up in `write_sum`: like `combine`, with an offset in elements of `out`.
struct Part {
  c10::SmallVector<int64_t, 6> sizes, strides;
  int64_t offset;
  at::Tensor a, b;
  double alpha;
};

// out becomes the sum of the parts, and 0 where there is none; contiguous.
void write_sum(const at::Tensor& out, c10::ArrayRef<Part> parts);

// How many rows to compute at a time of a product of which one triangle is wanted, of `columns` columns.
int64_t panel_rows(const at::Tensor& like, int64_t columns);

// Whether the loops of this kernel take such factors; otherwise `combine` is made of ATen calls.
bool has_loops(const at::Tensor& a, const at::Tensor& b);

// alpha * a * b and alpha * a + beta * b, broadcast, as new tensors.
at::Tensor multiply(const at::Tensor& a, const at::Tensor& b, double alpha = 1.0);
at::Tensor blend(const at::Tensor& a, double alpha, const at::Tensor& b, double beta);
// The same elements in another shape: a view where strides allow it, else a contiguous copy.
at::Tensor reshape(const at::Tensor& t, at::IntArrayRef shape);
// A large pairwise array, such as [n, n, 3], with its short last axis outermost in memory: a copy that makes
// the loops over all its later products long. Anything else as it is.
at::Tensor with_long_loops(const at::Tensor& t);
// sum over the axes in `reduce`, kept with size 1, of a * b.
at::Tensor dot(const at::Tensor& a, const at::Tensor& b, const std::vector<bool>& reduce);

}  // namespace hesse::kernels
