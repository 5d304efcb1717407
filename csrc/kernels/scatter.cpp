#include "kernels/scatter.h"

#include "kernels/backend.h"
#include "kernels/recorder.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>
#include <c10/util/SmallVector.h>

namespace hesse::kernels {

namespace {

using Sizes = c10::SmallVector<int64_t, 8>;
using ScatterAxes = c10::SmallVector<ScatterAxis, 8>;

// `scatter_add` as calls of ATen, which needs the place of each element in memory.
void scatter_by_aten(const at::Tensor& out, c10::ArrayRef<PlacedAxis> axes, int64_t offset,
                     const at::Tensor& a, const at::Tensor& b, double alpha) {
  const auto whole = out.options().dtype(at::kLong);
  const auto rank = static_cast<int64_t>(axes.size());
  at::Tensor at = at::full({}, offset, whole);
  Sizes sizes;
  for (int64_t d = 0; d < rank; ++d) {
    const PlacedAxis& x = axes[d];
    sizes.push_back(x.n);
    Sizes along(axes.size(), 1);
    along[d] = x.n;
    if (x.out != 0) at = at + at::arange(x.n, whole).mul(x.out).view(along);
    for (const PlacedAxis::By& by : x.by) {
      if (by.index.defined()) at = at + by.index.mul(by.step).view(along);
    }
  }
  at::Tensor values = a.defined() && b.defined() ? at::mul(a, b) : a.defined() ? a : b;
  values = values.defined() ? (alpha == 1.0 ? values : at::mul(values, alpha))
                            : at::full({}, alpha, out.options());
  out.view({-1}).index_add_(0, at.expand(sizes).reshape({-1}), values.expand(sizes).reshape({-1}));
}

Scatter scatter_of(const at::Tensor& out, int64_t offset, const at::Tensor& a, const at::Tensor& b,
                   double alpha, const ScatterAxes& axes) {
  return {*type_of(out.scalar_type()),
          static_cast<char*>(out.data_ptr()) + offset * out.element_size(),
          a.defined() ? a.const_data_ptr() : nullptr,
          b.defined() ? b.const_data_ptr() : nullptr,
          alpha,
          axes.data(),
          axes.size()};
}

int64_t stride_of(const at::Tensor& f, int64_t d) { return f.defined() && f.size(d) > 1 ? f.stride(d) : 0; }

}  // namespace

void scatter_add(const at::Tensor& out, c10::ArrayRef<PlacedAxis> placed, int64_t offset, const at::Tensor& a,
                 const at::Tensor& b, double alpha) {
  const Backend* backend = backend_for(out, a, b);
  const bool any_order = !at::globalContext().deterministicAlgorithms();
  c10::SmallVector<at::Tensor, 4> indices;  // alive until the kernel has been launched
  ScatterAxes axes;
  auto step = [&](const PlacedAxis::By& by) -> IndexStep {
    if (!by.index.defined()) return {nullptr, 0};
    indices.push_back(by.index.contiguous());
    return {indices.back().const_data_ptr<int64_t>(), by.step};
  };
  if (backend && (any_order || backend->scatters_in_order)) {
    for (size_t d = 0; d < placed.size(); ++d) {
      const PlacedAxis& x = placed[d];
      const auto axis = static_cast<int64_t>(d);
      axes.push_back({x.n, x.out, stride_of(a, axis), stride_of(b, axis), {step(x.by[0]), step(x.by[1])}});
    }
    if (axes.empty()) axes.push_back({1, 0, 0, 0, {{nullptr, 0}, {nullptr, 0}}});
    if (backend->scatter_add(scatter_of(out, offset, a, b, alpha, axes), out.device())) {
      if (Recorder* r = recorder()) {
        std::vector<at::Tensor> tensors{out, a, b};
        tensors.insert(tensors.end(), indices.begin(), indices.end());
        r->wrote(std::move(tensors), [=](const std::vector<at::Tensor>& t) mutable {
          size_t next = 3;
          for (ScatterAxis& x : axes) {
            for (IndexStep& by : x.by) {
              if (by.index) by.index = t[next++].const_data_ptr<int64_t>();
            }
          }
          backend->scatter_add(scatter_of(t[0], offset, t[1], t[2], alpha, axes), t[0].device());
          return at::Tensor();
        });
      }
      return;
    }
  }
  scatter_by_aten(out, placed, offset, a, b, alpha);
}

}  // namespace hesse::kernels
