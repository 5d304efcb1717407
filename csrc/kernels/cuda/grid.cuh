// Runs the bodies of kernels on a GPU.
#pragma once

#include "kernels/bodies/block.h"
#include "kernels/cuda/launchers.h"

#include <cuda_runtime.h>

namespace hesse::kernels::cuda {

namespace {

template <class Shared>
struct Block {
  Shared& shared;
  __device__ __forceinline__ unsigned at() const { return blockIdx.x; }
  __device__ __forceinline__ unsigned count() const { return gridDim.x; }
  template <class F>
  __device__ __forceinline__ void each(F f) const {
    f(static_cast<int>(threadIdx.x));
  }
  __device__ __forceinline__ void sync() const { __syncthreads(); }
};

template <class Body>
__global__ void __launch_bounds__(kThreads) kernel(const __grid_constant__ Body body) {
  __shared__ typename Body::Shared shared;
  Block<typename Body::Shared> block{shared};
  body(block);
}

struct Grid {
  cudaStream_t stream;
  int most = 1;  // blocks
  cudaError_t error = cudaSuccess;

  // Our runtime, linked statically, knows nothing of the device that torch's has made current.
  explicit Grid(Where where) : stream(static_cast<cudaStream_t>(where.stream)) {
    constexpr int per_processor = 16;
    int current = -1, processors = 1;
    error = cudaGetDevice(&current);
    if (error == cudaSuccess && current != where.device) error = cudaSetDevice(where.device);
    if (error == cudaSuccess)
      error = cudaDeviceGetAttribute(&processors, cudaDevAttrMultiProcessorCount, where.device);
    most = per_processor * processors;
  }

  template <class Body>
  void run(int64_t blocks, const Body& body) {
    if (error != cudaSuccess || blocks == 0) return;
    kernel<<<static_cast<unsigned>(blocks < most ? blocks : most), kThreads, 0, stream>>>(body);
    error = cudaGetLastError();
  }
};

}  // namespace

}  // namespace hesse::kernels::cuda
