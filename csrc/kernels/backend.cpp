#include "kernels/backend.h"

#include "kernels/cpu/backend.h"
#include "kernels/host/backend.h"
#ifdef HESSE_WITH_CUDA
#include "kernels/cuda/backend.h"
#endif

#include <ATen/core/Tensor.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <atomic>

namespace hesse::kernels {

namespace {

constexpr const char* kBodies = "bodies";

std::atomic<const Backend*> on_cpu{&cpu::backend};

bool plain(const at::Tensor& t, const at::Tensor& out) {
  return !t.defined() || (t.scalar_type() == out.scalar_type() && t.device() == out.device() &&
                          t.layout() == at::kStrided && !t.is_neg() && !t._is_zerotensor());
}

}  // namespace

const Backend* backend_of(c10::Device device) {
  switch (device.type()) {
    case c10::DeviceType::CPU:
      return on_cpu.load(std::memory_order_relaxed);
#ifdef HESSE_WITH_CUDA
    case c10::DeviceType::CUDA:
      return cuda::backend_of(device);
#endif
    default:
      return nullptr;
  }
}

const Backend* backend_for(const at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
  const auto type = type_of(out.scalar_type());
  if (!type || c10::GradMode::is_enabled() || !plain(out, out) || !plain(a, out) || !plain(b, out))
    return nullptr;
  const Backend* backend = backend_of(out.device());
  return backend && backend->takes(*type) ? backend : nullptr;
}

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

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names = cpu::instruction_sets();
  names.insert(names.begin(), kBodies);
  return names;
}

void use_instruction_set(const std::string& name) {
  const std::vector<std::string> names = instruction_sets();
  TORCH_CHECK(std::find(names.begin(), names.end(), name) != names.end(),
              "hesse: this processor does not have the instruction set ", name);
  on_cpu = name == kBodies ? &host::backend : &cpu::backend;
  if (name != kBodies) cpu::use_instruction_set(name);
}

}  // namespace hesse::kernels
