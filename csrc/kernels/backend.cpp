#include "kernels/backend.h"

#include "kernels/cpu/backend.h"

#include <c10/util/Exception.h>

#include <algorithm>

namespace hesse::kernels {

const Backend* backend_of(c10::Device device) { return device.is_cpu() ? &cpu::backend : nullptr; }

std::optional<Type> type_of(at::ScalarType type) {
  switch (type) {
    case at::kFloat:
      return Type::f32;
    case at::kDouble:
      return Type::f64;
    case at::kHalf:
      return Type::f16;
    case at::kBFloat16:
      return Type::bf16;
    default:
      return std::nullopt;
  }
}

std::vector<std::string> instruction_sets() { return cpu::instruction_sets(); }

void use_instruction_set(const std::string& name) {
  const std::vector<std::string> names = instruction_sets();
  TORCH_CHECK(std::find(names.begin(), names.end(), name) != names.end(),
              "hesse: this processor does not have the instruction set ", name);
  cpu::use_instruction_set(name);
}

}  // namespace hesse::kernels
