#include "kernels/workspace.h"

#include "kernels/cpu/backend.h"

#include <ATen/EmptyTensor.h>
#include <c10/core/Allocator.h>
#include <c10/core/impl/alloc_cpu.h>

#include <algorithm>
#include <mutex>
#include <vector>

namespace hesse::kernels {

namespace {

constexpr size_t kKept = size_t{64} << 20;  // idle bytes
constexpr size_t kHeader = 64;              // keeps the data aligned for vectors

// A block is its size, then the data.
size_t& size_of(void* data) { return *reinterpret_cast<size_t*>(static_cast<char*>(data) - kHeader); }

void report(void* data, int64_t bytes) {
  if (c10::memoryProfilingEnabled())
    c10::reportMemoryUsageToProfiler(data, bytes, 0, 0, c10::Device(at::kCPU));
}

class Workspace final : public c10::Allocator {
 public:
  c10::DataPtr allocate(size_t n) override {
    void* data = take(n);
    if (!data) {
      char* block = static_cast<char*>(c10::alloc_cpu(n + kHeader));
      data = block + kHeader;
      size_of(data) = n;
    }
    report(data, static_cast<int64_t>(size_of(data)));
    return {data, data, &give_back, c10::Device(at::kCPU)};
  }
  c10::DeleterFnPtr raw_deleter() const override { return &give_back; }
  void copy_data(void* to, const void* from, size_t n) const override { default_copy_data(to, from, n); }

  void drop_idle() {
    const std::lock_guard<std::mutex> lock(mutex_);
    for (void* block : idle_) c10::free_cpu(static_cast<char*>(block) - kHeader);
    idle_.clear();
    kept_ = 0;
  }

  // Lives as long as the process: tensors may outlive every other static.
  static Workspace& get() {
    static auto* const workspace = new Workspace;
    return *workspace;
  }

 private:
  // The smallest idle block that is not much too large.
  void* take(size_t n) {
    const std::lock_guard<std::mutex> lock(mutex_);
    auto best = idle_.end();
    for (auto it = idle_.begin(); it != idle_.end(); ++it) {
      const size_t size = size_of(*it);
      if (size >= n && size <= n + n / 4 && (best == idle_.end() || size < size_of(*best))) best = it;
    }
    if (best == idle_.end()) return nullptr;
    void* data = *best;
    idle_.erase(best);
    kept_ -= size_of(data);
    return data;
  }

  static void give_back(void* data) {
    report(data, -static_cast<int64_t>(size_of(data)));
    Workspace& w = get();
    std::vector<void*> surplus;
    if (size_of(data) > kKept) {
      surplus.push_back(data);
    } else {
      const std::lock_guard<std::mutex> lock(w.mutex_);
      w.idle_.push_back(data);
      w.kept_ += size_of(data);
      while (w.kept_ > kKept) {  // the oldest go first
        surplus.push_back(w.idle_.front());
        w.kept_ -= size_of(w.idle_.front());
        w.idle_.erase(w.idle_.begin());
      }
    }
    for (void* block : surplus) c10::free_cpu(static_cast<char*>(block) - kHeader);
  }

  std::mutex mutex_;
  std::vector<void*> idle_;  // oldest first
  size_t kept_ = 0;
};

}  // namespace

namespace cpu {

at::Tensor fresh(at::IntArrayRef size, at::IntArrayRef stride, at::ScalarType type) {
  return at::detail::empty_strided_generic(size, stride, &Workspace::get(),
                                           c10::DispatchKeySet(c10::DispatchKey::CPU), type);
}

}  // namespace cpu

void drop_idle_blocks() { Workspace::get().drop_idle(); }

}  // namespace hesse::kernels
