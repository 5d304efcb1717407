// The state in which ATen and autograd run our code, for as long as a scope lives.
#pragma once

#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/GradMode.h>
#include <c10/core/impl/LocalDispatchKeySet.h>

#include <optional>

namespace hesse {

// Below autograd (fast), or recording when a graph of the Hessian itself is wanted.
class Recording {
 public:
  explicit Recording(bool create_graph);

 private:
  c10::AutoGradMode grad_mode_;
  std::optional<at::AutoDispatchBelowADInplaceOrView> below_;
};

// Runs code that needs autograd to record or Python to run, from inside a sweep that has it switched off.
class AutogradScope {
 public:
  explicit AutogradScope(bool grad_mode);
  ~AutogradScope();
  AutogradScope(const AutogradScope&) = delete;
  AutogradScope& operator=(const AutogradScope&) = delete;

 private:
  c10::impl::LocalDispatchKeySet keys_;
  bool grad_mode_;
};

// Python leaves its error set while one of its exceptions passes through C++. Whoever catches it without
// passing it on forgets the error with this, which returns false for what must be passed on (an interrupt).
// The module sets it.
extern bool (*forget_python_error)();

}  // namespace hesse
