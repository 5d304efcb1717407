// Sizes, strides and axes as nodes save them.
#pragma once

#include "rule.h"

#include <ATen/WrapDimUtils.h>

namespace hesse::rules {

inline Shape ints(c10::ArrayRef<c10::SymInt> s) {
  Shape out;
  for (const c10::SymInt& i : s) out.push_back(i.expect_int());
  return out;
}

inline int64_t wrap(int64_t dim, const Shape& shape) {
  return at::maybe_wrap_dim(dim, static_cast<int64_t>(shape.size()));
}

// A tensor of these strides lies in memory as its values are counted.
inline bool is_row_major(const Shape& size, const Shape& stride) {
  const Shape plain = row_major(size);
  for (size_t d = 0; d < size.size(); ++d) {
    if (size[d] > 1 && stride[d] != plain[d]) return false;
  }
  return true;
}

}  // namespace hesse::rules
