#include "kernels/workspace.h"

#include "kernels/backend.h"
#include "kernels/recorder.h"

#include <ATen/ATen.h>

namespace hesse::kernels {

at::Tensor fresh(at::IntArrayRef size, at::IntArrayRef stride, const at::TensorOptions& options) {
  constexpr size_t large = size_t{1} << 20;  // below, allocators reuse memory well enough
  const auto type = c10::typeMetaToScalarType(options.dtype());
  const size_t bytes = static_cast<size_t>(c10::multiply_integers(size)) * c10::elementSize(type);
  const Backend* backend = backend_of(options.device());
  if (bytes < large || !backend || !backend->fresh) return at::empty_strided(size, stride, options);
  const at::Tensor t = backend->fresh(size, stride, type);
  if (Recorder* r = recorder()) {
    r->made(t, [=, size = size.vec(), stride = stride.vec()](const std::vector<at::Tensor>&) {
      return backend->fresh(size, stride, type);
    });
  }
  return t;
}

at::Tensor fresh(at::IntArrayRef size, const at::TensorOptions& options) {
  c10::SmallVector<int64_t, 6> stride(size.size());
  int64_t step = 1;
  for (size_t a = size.size(); a-- > 0; step *= size[a]) stride[a] = step;
  return fresh(size, stride, options);
}

}  // namespace hesse::kernels
