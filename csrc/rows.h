// Tangents as tensors of rows, for steps that know nothing of structure: nodes that are driven, rules in
// Python.
#pragma once

#include "rule.h"

namespace hesse {

// Rows [seeds, *S] in (undefined: zero), [seeds, *S_out] out (undefined: zero), for all tangents at once.
using RowsMap = std::function<std::vector<Tensor>(const std::vector<Tensor>& rows, int64_t seeds,
                                                  int64_t bytes_per_seed)>;

// Applies f to the seeds that any of the tangents has; at least one of them is not zero. What is not wanted
// of the result is zero.
Tangents on_rows(const Tangents& in, const std::vector<Shape>& out_shape, const std::vector<bool>& wanted,
                 const RowsMap& f);

}  // namespace hesse
