// How much memory a device has left, for the size of chunks.
#pragma once

#include <c10/core/Device.h>

#include <cstdint>
#include <optional>

namespace hesse {

// Bytes that can still be allocated: what the device has free, and what PyTorch's allocator holds but nobody
// uses. While the current stream is captured into a graph a device is not to be asked: then it is what was
// found the last time. None: on the host, or where the device's allocator does not tell.
std::optional<int64_t> free_bytes(c10::Device device);

}  // namespace hesse
