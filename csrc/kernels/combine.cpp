#include "kernels/combine.h"

#include "kernels/backend.h"
#include "kernels/recorder.h"
#include "kernels/workspace.h"

#include <ATen/ATen.h>
#include <ATen/TensorUtils.h>
#include <c10/core/GradMode.h>
#include <c10/util/SmallVector.h>

#include <algorithm>

namespace hesse::kernels {

namespace {

constexpr int64_t kShort = 8;  // an axis that makes a poor innermost loop

using Axes = c10::SmallVector<Axis, 8>;
using Strides = c10::SmallVector<int64_t, 8>;
using Sizes = c10::SmallVector<int64_t, 8>;

int64_t stride_of(const at::Tensor& f, size_t d) {
  const auto axis = static_cast<int64_t>(d);
  return f.defined() && f.size(axis) > 1 ? f.stride(axis) : 0;
}

Axes axes_of(at::IntArrayRef sizes, at::IntArrayRef strides, const at::Tensor& a, const at::Tensor& b) {
  Axes axes;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] != 1) axes.push_back({sizes[d], strides[d], stride_of(a, d), stride_of(b, d)});
  }
  if (axes.empty()) return {{1, 0, 0, 0}};
  std::sort(axes.begin(), axes.end(), [](const Axis& x, const Axis& y) {
    return x.out != y.out ? x.out > y.out : std::max(x.a, x.b) > std::max(y.a, y.b);
  });
  Axes merged;
  for (const Axis& x : axes) {
    if (!merged.empty()) {
      Axis& last = merged.back();
      if (last.out == x.n * x.out && last.a == x.n * x.a && last.b == x.n * x.b) {
        last = {last.n * x.n, x.out, x.a, x.b};
        continue;
      }
    }
    merged.push_back(x);
  }
  return merged;
}

Sizes broadcast(const at::Tensor& a, const at::Tensor& b) {
  Sizes sizes(a.sizes().begin(), a.sizes().end());
  for (size_t d = 0; d < sizes.size(); ++d) sizes[d] = std::max(sizes[d], b.size(static_cast<int64_t>(d)));
  return sizes;
}

// Strides of a new tensor: axes in the order in which the larger factor has them, short ones outermost, so
// that the loops over it are long.
Strides layout(at::IntArrayRef sizes, const at::Tensor& a, const at::Tensor& b) {
  const at::Tensor& like = a.numel() >= b.numel() ? a : b;
  const at::Tensor& other = a.numel() >= b.numel() ? b : a;
  Strides order(sizes.size()), key(sizes.size());
  for (size_t d = 0; d < order.size(); ++d) {
    order[d] = static_cast<int64_t>(d);
    key[d] = like.size(order[d]) > 1 ? stride_of(like, d) : stride_of(other, d);
  }
  std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) {
    const bool sx = sizes[x] < kShort, sy = sizes[y] < kShort;
    return sx != sy ? sx : key[x] > key[y];
  });
  Strides strides(sizes.size());
  int64_t step = 1;
  for (size_t i = order.size(); i-- > 0;) {
    strides[order[i]] = step;
    step *= sizes[order[i]];
  }
  return strides;
}

const void* data_of(const at::Tensor& t) { return t.defined() ? t.const_data_ptr() : nullptr; }

Pass pass_of(Into into, const at::Tensor& out, int64_t offset, const at::Tensor& a, const at::Tensor& b,
             double alpha, const Axes& axes) {
  void* start = static_cast<char*>(out.data_ptr()) + offset * out.element_size();
  return {*type_of(out.scalar_type()), start,       data_of(a), data_of(b), alpha,
          into == Into::write,         axes.data(), axes.size()};
}

// `combine` as calls of ATen.
void combine_by_aten(Into into, const at::Tensor& out, at::IntArrayRef sizes, at::IntArrayRef strides,
                     int64_t offset, at::Tensor a, at::Tensor b, double alpha) {
  if (into == Into::write) out.zero_();
  Sizes kept(sizes.begin(), sizes.end()), summed;
  for (size_t d = 0; d < kept.size(); ++d) {
    if (strides[d] != 0 || sizes[d] == 1) continue;
    summed.push_back(static_cast<int64_t>(d));
    kept[d] = 1;
  }
  if (!summed.empty()) {
    a = a.defined() && b.defined() ? a * b : a.defined() ? a : b;
    a = (a.defined() ? a : at::ones({}, out.options())).expand(sizes).sum(summed, /*keepdim=*/true);
    b = at::Tensor();
  }
  const at::Tensor view = out.as_strided(kept, strides, out.storage_offset() + offset);
  if (a.defined() && b.defined()) {
    view.addcmul_(a, b, alpha);
  } else if (a.defined() || b.defined()) {
    view.add_(a.defined() ? a : b, alpha);
  } else {
    view.add_(alpha);
  }
}

}  // namespace

bool has_loops(const at::Tensor& a, const at::Tensor& b) {
  return backend_for(a.defined() ? a : b, a, b) != nullptr;
}

void combine(Into into, const at::Tensor& out, at::IntArrayRef sizes, at::IntArrayRef strides, int64_t offset,
             const at::Tensor& a, const at::Tensor& b, double alpha) {
  const Backend* backend = backend_for(out, a, b);
  if (!backend) return combine_by_aten(into, out, sizes, strides, offset, a, b, alpha);
  const Axes axes = axes_of(sizes, strides, a, b);
  backend->combine(pass_of(into, out, offset, a, b, alpha, axes), out.device());
  if (Recorder* r = recorder()) {
    r->wrote({out, a, b}, [=](const std::vector<at::Tensor>& t) {
      backend->combine(pass_of(into, t[0], offset, t[1], t[2], alpha, axes), t[0].device());
      return at::Tensor();
    });
  }
}

namespace {

// The parts' factors are tensors[2 i + 1] and tensors[2 i + 2].
void write_sum_by(const Backend& backend, const std::vector<at::Tensor>& tensors,
                  const std::vector<Axes>& axes, const std::vector<std::pair<int64_t, double>>& places) {
  const at::Tensor& out = tensors[0];
  c10::SmallVector<Pass, 4> passes;
  for (size_t i = 0; i < axes.size(); ++i) {
    const auto [offset, alpha] = places[i];
    passes.push_back(pass_of(Into::add, out, offset, tensors[2 * i + 1], tensors[2 * i + 2], alpha, axes[i]));
  }
  backend.write_sum({*type_of(out.scalar_type()), out.data_ptr(), out.numel(), passes.data(), passes.size()},
                    out.device());
}

}  // namespace

void write_sum(const at::Tensor& out, c10::ArrayRef<Part> parts) {
  const Backend* backend = backend_for(out, {}, {});
  for (const Part& p : parts) backend = backend && backend_for(out, p.a, p.b) ? backend : nullptr;
  if (!backend) {
    out.zero_();
    for (const Part& p : parts) combine(Into::add, out, p.sizes, p.strides, p.offset, p.a, p.b, p.alpha);
    return;
  }
  std::vector<at::Tensor> tensors{out};
  std::vector<Axes> axes;
  std::vector<std::pair<int64_t, double>> places;  // offset and alpha
  for (const Part& p : parts) {
    tensors.insert(tensors.end(), {p.a, p.b});
    axes.push_back(axes_of(p.sizes, p.strides, p.a, p.b));
    places.emplace_back(p.offset, p.alpha);
  }
  write_sum_by(*backend, tensors, axes, places);
  if (Recorder* r = recorder()) {
    r->wrote(std::move(tensors), [=](const std::vector<at::Tensor>& t) {
      write_sum_by(*backend, t, axes, places);
      return at::Tensor();
    });
  }
}

int64_t panel_rows(const at::Tensor& like, int64_t columns) {
  constexpr int64_t usual = 128;
  const Backend* backend = backend_of(like.device());
  return backend ? backend->panel_rows(columns) : usual;
}

at::Tensor multiply(const at::Tensor& a, const at::Tensor& b, double alpha) {
  if (!has_loops(a, b)) {
    const at::Tensor product = at::mul(a, b);
    return alpha == 1.0 ? product : at::mul(product, alpha);
  }
  const Sizes sizes = broadcast(a, b);
  const Strides strides = layout(sizes, a, b);
  const at::Tensor out = fresh(sizes, strides, a.options());
  combine(Into::write, out, sizes, strides, 0, a, b, alpha);
  return out;
}

at::Tensor blend(const at::Tensor& a, double alpha, const at::Tensor& b, double beta) {
  if (!has_loops(a, b)) return at::add(alpha == 1.0 ? a : at::mul(a, alpha), b, beta);
  const Sizes sizes = broadcast(a, b);
  const Strides strides = layout(sizes, a, b);
  const at::Tensor out = fresh(sizes, strides, a.options());
  combine(Into::write, out, sizes, strides, 0, a, {}, alpha);
  combine(Into::add, out, sizes, strides, 0, b, {}, beta);
  return out;
}

at::Tensor reshape(const at::Tensor& t, at::IntArrayRef shape) {
  if (!has_loops(t, {})) return t.reshape(shape);
  const auto stride = at::detail::computeStride(t.sizes(), t.strides(), at::DimVector(shape));
  if (stride) return t.as_strided(shape, *stride);
  const at::Tensor out = fresh(t.sizes(), t.options());
  combine(Into::write, out, t.sizes(), out.strides(), 0, t, {}, 1.0);
  return out.view(shape);
}

at::Tensor with_long_loops(const at::Tensor& t) {
  constexpr int64_t large = 4096;
  if (t.dim() < 3 || t.numel() < large || t.size(-1) >= kShort || t.stride(-1) != 1 || !has_loops(t, {}))
    return t;
  const Sizes sizes(t.sizes().begin(), t.sizes().end());
  const Strides strides = layout(sizes, t, t);
  const at::Tensor out = fresh(sizes, strides, t.options());
  combine(Into::write, out, sizes, strides, 0, t, {}, 1.0);
  return out;
}

at::Tensor dot(const at::Tensor& a, const at::Tensor& b, const std::vector<bool>& reduce) {
  const Sizes sizes = broadcast(a, b);
  Sizes kept = sizes;
  for (size_t d = 0; d < kept.size(); ++d) {
    if (reduce[d]) kept[d] = 1;
  }
  Strides strides = layout(kept, a, b);
  const at::Tensor out = fresh(kept, strides, a.options());
  for (size_t d = 0; d < kept.size(); ++d) {
    if (reduce[d]) strides[d] = 0;
  }
  combine(Into::write, out, sizes, strides, 0, a, b, 1.0);
  return out;
}

}  // namespace hesse::kernels
