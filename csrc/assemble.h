// From the tangents of the gradient to the blocks of the Hessian: each term is added where it belongs, in one
// pass; a block is a contiguous tensor of its own.
#pragma once

#include "sweep.h"

namespace hesse {

struct HessianOptions {
  std::optional<int64_t> chunk_size;  // seeds per sweep; none: all that the budget allows
  bool dtype_of_row = false;          // block (i, j) has the dtype of input i instead of j
};

struct HessianReport {
  Ledger ledger;
  int64_t chunk_size = 0;
  int64_t chunks = 0;
};

using Blocks = std::vector<std::vector<Tensor>>;

// blocks[i][j]: [*shape_i, *shape_j].
Blocks hessian(Linearization& lin, const HessianOptions& options, HessianReport& report);

}  // namespace hesse
