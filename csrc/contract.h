// Products of broadcastable factors with some axes summed over: the one place where seed-sized FLOPs happen.
#pragma once

#include "term.h"

namespace hesse {

// Where a product is to land in the Hessian: strides of each axis in seeds and in elements of the input. With
// `upper`, only entries with v + v_shift >= k are needed: the rest follows by symmetry and is left unwritten.
struct Landing {
  c10::SmallVector<Dim, 6> dims;
  int64_t k0 = 0, v0 = 0, v_shift = 0;
  bool upper = false;
};

// sum over the axes in `reduce` of a * b. Both have the same number of axes, each of full size or 1; an
// undefined factor is 1. `sizes` are the full sizes. Summed axes stay, with size 1. The work is handed to one
// (batched) matrix product; `seeded` says whether the result depends on the seed (it is then accounted for).
// Constants go to alpha. A landing orders the result's memory; its `upper` says on return whether it was
// used.
Tensor contract(Tensor a, Tensor b, const Shape& sizes, const std::vector<bool>& reduce, bool seeded,
                double& alpha, Landing* landing = nullptr);

}  // namespace hesse
