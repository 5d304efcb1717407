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
  bool scatters_in_order;  // sums at one place always come out the same
  void (*combine)(const Pass& pass, c10::Device device);
  void (*write_sum)(const Sum& sum, c10::Device device);
  bool (*scatter_add)(const Scatter& scatter, c10::Device device);  // false: it has too many axes
  void (*mirror_upper)(void* m, int64_t n, int word, c10::Device device);
  void (*pack_lower)(const Packing& packing, c10::Device device);
  int64_t (*panel_rows)(int64_t columns);  // of a product that computes one triangle
};

// null: none for this device.
const Backend* backend_of(c10::Device device);
// Those for all three, none of them recorded by autograd and all of one type and device; factors may be
// undefined.
const Backend* backend_for(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b);
// The kernels' name of a type; none: it has to go the way of ATen.
std::optional<Type> type_of(at::ScalarType type);

// The CPU's loops are compiled for several instruction sets, widest last; those that this processor has,
// after "bodies": those of the CUDA kernels, run by the host. The widest runs unless another is asked for,
// which is for tests: results differ by rounding.
std::vector<std::string> instruction_sets();
void use_instruction_set(const std::string& name);

}  // namespace hesse::kernels
