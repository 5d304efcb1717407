// The CUDA kernels behind torch's devices and streams.
#pragma once

#include "kernels/backend.h"

namespace hesse::kernels::cuda {

// null: the device or its driver cannot run them, of which a warning tells once.
const Backend* backend_of(c10::Device device);

}  // namespace hesse::kernels::cuda
