#include "kernels/bodies/combine.h"

#include "kernels/cuda/grid.cuh"

namespace hesse::kernels::cuda {

int combine(Where where, const Pass& pass) {
  Grid grid(where);
  kernels::combine(grid, pass);
  return grid.error;
}

}  // namespace hesse::kernels::cuda
