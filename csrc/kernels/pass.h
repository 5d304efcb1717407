// What a device's kernels are told: plain structs, without torch.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hesse::kernels {

enum class Type { f32, f64, f16, bf16 };

struct Axis {
  int64_t n, out, a, b;  // size, and the stride of each operand
};

// out[i . out] (+)= alpha * a[i . a] * b[i . b]; see combine.h. Axes are sorted by the stride they write
// with, the largest first; neighbours that run on into each other are one, and there is at least one.
struct Pass {
  Type type;
  void* out;      // the element at index 0
  const void* a;  // null: 1
  const void* b;
  double alpha;
  bool write;  // else add
  const Axis* axes;
  size_t rank;
};

// out[0, n) becomes the sum of what the parts add to it; see combine.h.
struct Sum {
  Type type;
  void* out;
  int64_t n;
  const Pass* parts;  // that add
  size_t count;
};

// out[sum over axes of i out + index0[i] step0 + index1[i] step1] += alpha * a[i . a] * b[i . b]; see
// scatter.h.
struct IndexStep {
  const int64_t* index;  // null: none
  int64_t step;
};

struct ScatterAxis {
  int64_t n, out, a, b;
  IndexStep by[2];
};

struct Scatter {
  Type type;
  void* out;
  const void* a;  // null: 1
  const void* b;
  double alpha;
  const ScatterAxis* axes;
  size_t rank;
};

// A square matrix whose lower triangle is packed; see pack.h.
struct Packing {
  int word;  // bytes of an element
  void* packed;
  const void* m;
  int64_t size[2], stride[2];
  int64_t row, column;
};

}  // namespace hesse::kernels
