// What kernels did, for whoever wants to do it again (see tape.h). PyTorch's dispatcher sees its own ops; the
// kernels here are not among them and have to tell.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <vector>

namespace hesse::kernels {

// Does it again, with tensors in the places of those that it had. A kernel that makes a tensor returns it.
using Again = std::function<at::Tensor(const std::vector<at::Tensor>&)>;

class Recorder {
 public:
  virtual ~Recorder() = default;
  // The first of these tensors was written.
  virtual void wrote(std::vector<at::Tensor> tensors, Again again) = 0;
  virtual void made(const at::Tensor& result, Again again) = 0;
  // The host read this tensor: what follows is right for these values only.
  virtual void read(const at::Tensor& t) = 0;
};

// Of this thread; null where nobody records.
Recorder*& recorder();

}  // namespace hesse::kernels
