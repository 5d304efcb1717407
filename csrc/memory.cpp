#include "memory.h"

#include "compat.h"

#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <array>
#include <atomic>

namespace hesse {

namespace {

constexpr size_t kDevices = 64;

// Per device, -1: never asked.
std::atomic<int64_t>& last_found(c10::Device device) {
  static std::array<std::atomic<int64_t>, kDevices>& found = *[] {
    auto* all = new std::array<std::atomic<int64_t>, kDevices>;
    for (auto& f : *all) f = -1;
    return all;
  }();
  return found[static_cast<size_t>(std::max<int>(device.index(), 0)) % kDevices];
}

int64_t ask(c10::DeviceAllocator& allocator, c10::Device device) {
  using c10::CachingAllocator::StatType;
  constexpr auto all = static_cast<size_t>(StatType::AGGREGATE);
  const c10::CachingDeviceAllocator::DeviceStats stats = allocator.getDeviceStats(device.index());
  const int64_t idle = stats.reserved_bytes[all].current - stats.allocated_bytes[all].current;
  return static_cast<int64_t>(allocator.getMemoryInfo(device.index()).first) + idle;
}

}  // namespace

std::optional<int64_t> free_bytes(c10::Device device) {
  if (device.is_cpu() || device.is_meta()) return std::nullopt;
  auto* allocator = dynamic_cast<c10::DeviceAllocator*>(c10::GetAllocator(device.type()));
  if (!allocator || !allocator->initialized()) return std::nullopt;
  std::atomic<int64_t>& found = last_found(device);
  if (!is_capturing(device)) found = ask(*allocator, device);
  return found < 0 ? std::nullopt : std::make_optional(found.load());
}

}  // namespace hesse
