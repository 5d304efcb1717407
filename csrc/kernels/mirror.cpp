#include "kernels/mirror.h"

#include "kernels/backend.h"
#include "kernels/recorder.h"

#include <ATen/ATen.h>

namespace hesse::kernels {

void mirror_upper(const at::Tensor& m) {
  const Backend* backend = backend_of(m.device());
  if (!backend) {
    m.copy_(at::triu(m) + at::triu(m, 1).t());
    return;
  }
  backend->mirror_upper(m.data_ptr(), m.size(0), static_cast<int>(m.element_size()), m.device());
  if (Recorder* r = recorder()) {
    r->wrote({m}, [](const std::vector<at::Tensor>& t) {
      mirror_upper(t[0]);
      return at::Tensor();
    });
  }
}

}  // namespace hesse::kernels
