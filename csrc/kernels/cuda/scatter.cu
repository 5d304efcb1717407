#include "kernels/bodies/scatter.h"

#include "kernels/cuda/grid.cuh"

namespace hesse::kernels::cuda {

int scatter_add(Where where, const Scatter& scatter, bool& done) {
  Grid grid(where);
  done = kernels::scatter_add(grid, scatter);
  return grid.error;
}

}  // namespace hesse::kernels::cuda
