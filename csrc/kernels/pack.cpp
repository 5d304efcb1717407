#include "kernels/pack.h"

#include "kernels/backend.h"
#include "kernels/recorder.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

namespace hesse::kernels {

void pack_lower(const at::Tensor& packed, const at::Tensor& m, int64_t row, int64_t column) {
  const Backend* backend = backend_of(packed.device());
  if (!backend || c10::GradMode::is_enabled()) {
    const auto places = at::TensorOptions(m.device()).dtype(at::kLong);
    const at::Tensor r = at::arange(row, row + m.size(0), places).unsqueeze(1);
    const at::Tensor c = at::arange(column, column + m.size(1), places);
    const at::Tensor lower = c <= r;
    const at::Tensor index = at::where(lower, at::floor_divide(r * (r + 1), 2) + c, at::zeros({}, places));
    packed.index_add_(0, index.reshape({-1}), at::where(lower, m, at::zeros({}, m.options())).reshape({-1}));
    return;
  }
  backend->pack_lower({static_cast<int>(m.element_size()),
                       packed.data_ptr(),
                       m.data_ptr(),
                       {m.size(0), m.size(1)},
                       {m.stride(0), m.stride(1)},
                       row,
                       column},
                      packed.device());
  if (Recorder* r = recorder()) {
    r->wrote({packed, m}, [row, column](const std::vector<at::Tensor>& t) {
      pack_lower(t[0], t[1], row, column);
      return at::Tensor();
    });
  }
}

}  // namespace hesse::kernels
