// Maps along axes (see map_axes) that pick elements of the last axis at known indices [D, picked].
#pragma once

#include "verbs.h"

#include <ATen/ATen.h>

namespace hesse::rules {

inline Tensor gather_last(const Tensor& rows, const Tensor& index) {
  return rows.gather(-1, index.expand({rows.size(0), index.size(0), index.size(1)}));
}

// Its transpose, back on an axis of n.
inline AxesMap scatter_last(int64_t n) {
  return [n](const Tensor& rows, const Tensor& index) {
    return at::zeros({rows.size(0), rows.size(1), n}, rows.options())
        .scatter_add(-1, index.expand({rows.size(0), index.size(0), index.size(1)}), rows);
  };
}

}  // namespace hesse::rules
