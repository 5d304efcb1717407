// Every line that depends on the torch version (2.11 to 2.13) lives here.
#pragma once

#include <torch/csrc/autograd/function.h>
#include <torch/csrc/autograd/saved_variable.h>
#include <torch/version.h>

#include <c10/core/impl/VirtualGuardImpl.h>

#include <memory>
#include <type_traits>

namespace torch::autograd::generated {
struct AminmaxBackward0;  // not in 2.11
struct LdexpBackward0;
struct NarrowCopyBackward0;
struct UpsampleLanczos2DAaBackward0;
struct UpsampleLanczos2DAaBackwardBackward0;
}  // namespace torch::autograd::generated

namespace at::_ops {
struct _upsample_lanczos2d_aa;  // not in 2.11
struct _upsample_lanczos2d_aa_backward;
}  // namespace at::_ops

namespace hesse {

using Node = torch::autograd::Node;

#if TORCH_VERSION_MAJOR == 2 && TORCH_VERSION_MINOR >= 13
using NodePtr = c10::intrusive_ptr<Node>;
#else
using NodePtr = std::shared_ptr<Node>;
#endif
inline NodePtr share(Node& node) { return node.getptr(); }

// Whether the current stream of a device is captured into a graph; before 2.13 torch does not tell.
template <class Stream>
bool is_captured(const Stream& stream) {
  if constexpr (requires { stream.is_capturing(); }) {
    return stream.is_capturing();
  } else {
    return false;
  }
}
inline bool is_capturing(c10::Device device) {
  return is_captured(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
}

// Registers a rule for a node that older versions of torch do not have, or that saves nothing there.
template <class N, class Register>
void since_saved(Register add) {
  constexpr bool saves =
      requires(N& n) { n.self_; } || requires(N& n) { n.result_; } || requires(N& n) { n.self_sym_sizes; };
  if constexpr (saves) add(std::type_identity<N>{});
}

}  // namespace hesse
