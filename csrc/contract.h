// Products of broadcastable factors with some axes summed over: the one place where seed-sized FLOPs happen.
#pragma once

#include "tangent.h"

namespace hesse {

// sum over the axes in `reduce` of a * b. Both have the same number of axes, each of full size or 1; an
// undefined factor is 1. `sizes` are the full sizes. Summed axes stay, with size 1. The work is handed to one
// (batched) matrix product; `seeded` says whether the result depends on the seed (it is then accounted for).
Tensor contract(Tensor a, Tensor b, const Shape& sizes, const std::vector<bool>& reduce, bool seeded, double& alpha);


}  // namespace hesse
