#include "kernels/bodies/write_sum.h"

#include "kernels/cuda/grid.cuh"

namespace hesse::kernels::cuda {

int write_sum(Where where, const Sum& sum) {
  Grid grid(where);
  int error = 0;
  kernels::write_sum(grid, sum, [&](const Pass& pass) { error = error ? error : combine(where, pass); });
  return grid.error ? static_cast<int>(grid.error) : error;
}

}  // namespace hesse::kernels::cuda
