// Which kernels a tensor gets: those in the folder of its device. Fronts (`kernels/*.cpp`) check, merge axes
// and ask here; where there is no answer they go the way of ATen.
#pragma once

#include "kernels/pass.h"

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

namespace hesse::kernels {

struct Backend {
  at::Tensor (*fresh)(at::IntArrayRef size, at::IntArrayRef stride, at::ScalarType type);  // null: as ATen
  bool (*takes)(Type type);
  void (*combine)(const Pass& pass, c10::Device device);
  void (*mirror_upper)(void* m, int64_t n, int word, c10::Device device);
  void (*pack_lower)(const Packing& packing, c10::Device device);
};

// null: none for this device.
const Backend* backend_of(c10::Device device);
// The kernels' name of a type; none: it has to go the way of ATen.
std::optional<Type> type_of(at::ScalarType type);

// The CPU's loops are compiled for several instruction sets, widest last; those that this processor has. The
// widest runs unless another is asked for, which is for tests: results differ by rounding.
std::vector<std::string> instruction_sets();
void use_instruction_set(const std::string& name);

}  // namespace hesse::kernels
