#include "scopes.h"

namespace hesse {

Recording::Recording(bool create_graph) : grad_mode_(create_graph) {
  if (!create_graph) below_.emplace();
}

bool (*forget_python_error)() = [] { return true; };

AutogradScope::AutogradScope(bool grad_mode)
    : keys_(c10::impl::tls_local_dispatch_key_set()), grad_mode_(c10::GradMode::is_enabled()) {
  c10::impl::LocalDispatchKeySet keys = keys_;
  keys.excluded_ = keys.excluded_ - c10::autograd_dispatch_keyset_with_ADInplaceOrView;
  c10::impl::_force_tls_local_dispatch_key_set(keys);
  c10::GradMode::set_enabled(grad_mode);
}

AutogradScope::~AutogradScope() {
  c10::impl::_force_tls_local_dispatch_key_set(keys_);
  c10::GradMode::set_enabled(grad_mode_);
}

}  // namespace hesse
