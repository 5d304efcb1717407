#include "kernels/cuda/backend.h"

#include "kernels/cuda/launchers.h"

#include <c10/core/DeviceGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <array>
#include <atomic>

namespace hesse::kernels::cuda {

namespace {

// Launches on the device and its current stream.
template <class Launch>
void on(c10::Device device, const char* kernel, Launch launch) {
  const c10::DeviceGuard guard(device);
  const c10::impl::VirtualGuardImpl torch(device.type());
  const int error = launch(Where{device.index(), torch.getStream(device).native_handle()});
  TORCH_CHECK(error == 0, "hesse: the CUDA kernel ", kernel, " could not be launched on ", device, ": ",
              words(error), " (error ", error,
              "). An earlier kernel may have failed: CUDA_LAUNCH_BLOCKING=1 tells which. A build with "
              "HESSE_CUDA=off does without the kernels.");
}

// A panel has to keep the chip busy for as long as it takes to start it: some hundred tiles of 128 by 128.
int64_t panel_rows(int64_t columns) {
  constexpr int64_t tile = 128, tiles = 132;
  const int64_t rows = tile * tile * tiles / std::max<int64_t>(columns, 1);
  return (std::max(rows, tile) + tile - 1) / tile * tile;
}

const Backend backend{
    nullptr,
    [](Type) { return true; },
    /*scatters_in_order=*/false,
    [](const Pass& pass, c10::Device device) {
      on(device, "combine", [&](Where where) { return combine(where, pass); });
    },
    [](const Sum& sum, c10::Device device) {
      on(device, "write_sum", [&](Where where) { return write_sum(where, sum); });
    },
    [](const Scatter& scatter, c10::Device device) {
      bool done = true;
      on(device, "scatter_add", [&](Where where) { return scatter_add(where, scatter, done); });
      return done;
    },
    [](void* m, int64_t n, int word, c10::Device device) {
      on(device, "mirror_upper", [&](Where where) { return mirror_upper(where, m, n, word); });
    },
    [](const Packing& packing, c10::Device device) {
      on(device, "pack_lower", [&](Where where) { return pack_lower(where, packing); });
    },
    &panel_rows,
};

bool usable(c10::Device device) {
  constexpr size_t devices = 64;
  enum : int8_t { unknown, yes, no };
  static std::array<std::atomic<int8_t>, devices> known{};
  const auto index = static_cast<size_t>(device.index());
  if (index >= devices) return false;
  if (known[index] == unknown) {
    const c10::DeviceGuard guard(device);
    const int error = check(device.index());
    known[index] = error == 0 ? yes : no;
    if (error != 0) {
      TORCH_WARN(
          "hesse: its CUDA kernels cannot run on ", device, " (", words(error),
          "), PyTorch's own operations are used there, at some cost in time. Rebuild with a CUDA toolkit "
          "that the driver supports, and HESSE_CUDA_ARCHS naming this device's architecture.");
    }
  }
  return known[index] == yes;
}

}  // namespace

const Backend* backend_of(c10::Device device) { return usable(device) ? &backend : nullptr; }

}  // namespace hesse::kernels::cuda
