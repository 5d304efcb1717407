// The CPU's kernels.
#pragma once

#include "kernels/backend.h"

namespace hesse::kernels::cpu {

extern const Backend backend;

std::vector<std::string> instruction_sets();
void use_instruction_set(const std::string& name);

at::Tensor fresh(at::IntArrayRef size, at::IntArrayRef stride, at::ScalarType type);
void combine(const Pass& pass);
void write_sum(const Sum& sum);
void scatter_add(const Scatter& scatter);
void mirror_upper(void* m, int64_t n, int word);
void pack_lower(const Packing& packing);

}  // namespace hesse::kernels::cpu
