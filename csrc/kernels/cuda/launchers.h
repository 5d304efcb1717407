// The CUDA kernels, without torch. A launcher neither synchronises nor allocates, and returns 0 or an error
// code of the runtime.
#pragma once

#include "kernels/pass.h"

namespace hesse::kernels::cuda {

struct Where {
  int device;
  void* stream;
};

int combine(Where where, const Pass& pass);
int write_sum(Where where, const Sum& sum);
int scatter_add(Where where, const Scatter& scatter, bool& done);  // not: more axes than the kernel takes
int mirror_upper(Where where, void* m, int64_t n, int word);
int pack_lower(Where where, const Packing& packing);

// Whether the device and its driver can run kernels of this build.
int check(int device);
const char* words(int error);

}  // namespace hesse::kernels::cuda
