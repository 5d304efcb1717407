// From the tangents of the gradient to the blocks of the Hessian: each term is added where it belongs, in one
// pass; a block is a contiguous tensor of its own.
#pragma once

#include "chunks.h"

namespace hesse {

struct HessianOptions {
  std::optional<int64_t> chunk_size;  // seeds per sweep; none: all that the budget allows
  bool dtype_of_row = false;          // block (i, j) has the dtype of input i instead of j
};

using Blocks = std::vector<std::vector<Tensor>>;

// blocks[i][j]: [*shape_i, *shape_j].
Blocks hessian(Linearization& lin, const HessianOptions& options, SweepReport& report);
// One of them, and only the work for that.
Tensor block(Linearization& lin, size_t i, size_t j, SweepReport& report);

}  // namespace hesse
