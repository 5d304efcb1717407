#include "kernels/bodies/triangles.h"

#include "kernels/cuda/grid.cuh"

namespace hesse::kernels::cuda {

int mirror_upper(Where where, void* m, int64_t n, int word) {
  Grid grid(where);
  kernels::mirror_upper(grid, m, n, word);
  return grid.error;
}

int pack_lower(Where where, const Packing& packing) {
  Grid grid(where);
  kernels::pack_lower(grid, packing);
  return grid.error;
}

namespace {

struct Nothing {
  struct Shared {};
  template <class Block>
  __device__ void operator()(Block&) const {}
};

}  // namespace

// Looks a kernel up: its code is there for this device, and the driver takes it.
int check(int device) {
  const Grid grid({device, nullptr});
  if (grid.error != cudaSuccess) return grid.error;
  cudaFuncAttributes attributes;
  const cudaError_t error = cudaFuncGetAttributes(&attributes, kernel<Nothing>);
  cudaGetLastError();
  return error;
}

const char* words(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace hesse::kernels::cuda
