// The CUDA kernels' bodies on the CPU, for tests.
#pragma once

#include "kernels/backend.h"

namespace hesse::kernels::host {

extern const Backend backend;

}  // namespace hesse::kernels::host
