#include "batched.h"

#include <ATen/ATen.h>
#include <ATen/functorch/BatchedTensorImpl.h>
#include <ATen/functorch/DynamicLayer.h>
#include <c10/util/Exception.h>

#include <string>

namespace hesse {

namespace {

namespace functorch = at::functorch;
using at::Tensor;

// One level of vmap, for as long as this lives. An op that draws random numbers throws: a loop would draw
// different ones for each seed.
class Level {
 public:
  explicit Level(int64_t K)
      : level_(functorch::initAndPushDynamicLayer(functorch::TransformType::Vmap, c10::SymInt(K),
                                                  functorch::RandomnessType::Error)) {}
  ~Level() { functorch::popDynamicLayerAndDeleteMetadata(); }
  Level(const Level&) = delete;
  Level& operator=(const Level&) = delete;

  Tensor wrap(const Tensor& rows) const { return functorch::addBatchDim(rows, 0, level_); }

  // [K, *S]; what does not depend on the seed is repeated.
  Tensor unwrap(const Tensor& t, int64_t K) const {
    const auto* impl = functorch::maybeGetBatchedImpl(t);
    if (impl && impl->level() == level_) return impl->value().movedim(impl->bdim(), 0);
    std::vector<int64_t> size{K};
    size.insert(size.end(), t.sizes().begin(), t.sizes().end());
    return t.unsqueeze(0).expand(size);
  }

 private:
  int64_t level_;
};

// Keeps back the warning that an op has no batching rule, which is not the caller's to act on, and takes note
// of it. Handlers belong to a thread; PyTorch's own switch for this warning belongs to the process.
class FallbackListener : public c10::WarningHandler {
 public:
  void process(const c10::Warning& warning) override {
    if (warning.msg().find("batching rule for") != std::string::npos) {
      heard = true;
    } else {
      next_->process(warning);
    }
  }
  bool heard = false;

 private:
  c10::WarningHandler* next_ = c10::WarningUtils::get_warning_handler();
};

}  // namespace

Batched batched(const SeedFunction& f, const std::vector<Tensor>& args) {
  int64_t K = 0;
  for (const Tensor& t : args) K = t.defined() ? t.size(0) : K;
  FallbackListener listener;
  const c10::WarningUtils::WarningHandlerGuard guard(&listener);
  const Level level(K);
  std::vector<Tensor> wrapped;
  for (const Tensor& t : args) wrapped.push_back(t.defined() ? level.wrap(t) : t);
  Batched result;
  for (const Tensor& t : f(wrapped)) result.rows.push_back(t.defined() ? level.unwrap(t, K) : t);
  result.looped = listener.heard;
  return result;
}

}  // namespace hesse
