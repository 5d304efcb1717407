#include "kernels/place.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>
#include <c10/util/SmallVector.h>

#include <algorithm>

namespace hesse::kernels {

namespace {

struct Axis {
  int64_t n, out, coef, core;  // size and strides
};
using Axes = c10::SmallVector<Axis, 8>;

// Innermost loop; `kCoef`, `kCore`: which factors there are.
template <typename T, bool kCoef, bool kCore>
void run(T* out, const T* coef, const T* core, const Axis& a, T alpha) {
  if (a.out == 1 && (!kCoef || a.coef == 1) && (!kCore || a.core == 1)) {
    for (int64_t i = 0; i < a.n; ++i) out[i] += alpha * (kCoef ? coef[i] : T(1)) * (kCore ? core[i] : T(1));
    return;
  }
  for (int64_t i = 0; i < a.n; ++i) {
    out[i * a.out] += alpha * (kCoef ? coef[i * a.coef] : T(1)) * (kCore ? core[i * a.core] : T(1));
  }
}

template <typename T, bool kCoef, bool kCore>
void nest(T* out, const T* coef, const T* core, const Axis* axes, size_t rank, T alpha) {
  if (rank == 1) {
    run<T, kCoef, kCore>(out, coef, core, axes[0], alpha);
    return;
  }
  for (int64_t i = 0; i < axes[0].n; ++i) {
    nest<T, kCoef, kCore>(out + i * axes[0].out, coef + i * axes[0].coef, core + i * axes[0].core, axes + 1,
                          rank - 1, alpha);
  }
}

template <typename T>
void place_cpu(T* out, const T* coef, const T* core, Axes axes, T alpha) {
  auto go = [&](auto has_coef, auto has_core) {
    const Axis outer = axes[0];
    int64_t inner = 1;
    for (size_t d = 1; d < axes.size(); ++d) inner *= axes[d].n;
    const int64_t grain = std::max<int64_t>(1, 32768 / std::max<int64_t>(inner, 1));
    at::parallel_for(0, outer.n, grain, [&](int64_t begin, int64_t end) {
      Axes part = axes;
      part[0].n = end - begin;
      nest<T, decltype(has_coef)::value, decltype(has_core)::value>(
          out + begin * outer.out, coef + begin * outer.coef, core + begin * outer.core, part.data(),
          part.size(), alpha);
    });
  };
  if (coef && core) return go(std::true_type{}, std::true_type{});
  if (coef) return go(std::true_type{}, std::false_type{});
  if (core) return go(std::false_type{}, std::true_type{});
  go(std::false_type{}, std::false_type{});
}

// Axes by the stride they write with, neighbours that run on into each other merged; of the two innermost the
// longer is the inner loop.
Axes loops(at::IntArrayRef sizes, at::IntArrayRef strides, const at::Tensor& coef, const at::Tensor& core) {
  auto stride = [](const at::Tensor& f, size_t d) {
    const auto a = static_cast<int64_t>(d);
    return f.defined() && f.size(a) > 1 ? f.stride(a) : 0;
  };
  Axes axes;
  for (size_t d = 0; d < sizes.size(); ++d) {
    if (sizes[d] != 1) axes.push_back({sizes[d], strides[d], stride(coef, d), stride(core, d)});
  }
  if (axes.empty()) axes.push_back({1, 0, 0, 0});
  std::sort(axes.begin(), axes.end(), [](const Axis& a, const Axis& b) { return a.out > b.out; });
  Axes merged;
  for (const Axis& a : axes) {
    if (!merged.empty()) {
      Axis& last = merged.back();
      if (last.out == a.n * a.out && last.coef == a.n * a.coef && last.core == a.n * a.core) {
        last = {last.n * a.n, a.out, a.coef, a.core};
        continue;
      }
    }
    merged.push_back(a);
  }
  constexpr int64_t short_loop = 8;
  const size_t r = merged.size();
  if (r > 1 && merged[r - 1].n < short_loop && merged[r - 2].n > merged[r - 1].n)
    std::swap(merged[r - 1], merged[r - 2]);
  return merged;
}

template <typename T>
const T* data(const at::Tensor& t) {
  return t.defined() ? t.const_data_ptr<T>() : nullptr;
}

}  // namespace

void place(const at::Tensor& out, at::IntArrayRef sizes, at::IntArrayRef strides, int64_t offset,
           const at::Tensor& coef, const at::Tensor& core, double alpha) {
  const auto type = out.scalar_type();
  const bool plain = (type == at::kFloat || type == at::kDouble) && out.device().is_cpu() &&
                     !c10::GradMode::is_enabled() &&
                     (!coef.defined() || (coef.scalar_type() == type && coef.device().is_cpu())) &&
                     (!core.defined() || (core.scalar_type() == type && core.device().is_cpu()));
  if (plain) {
    const Axes axes = loops(sizes, strides, coef, core);
    if (type == at::kFloat) {
      place_cpu(out.data_ptr<float>() + offset, data<float>(coef), data<float>(core), axes,
                static_cast<float>(alpha));
    } else {
      place_cpu(out.data_ptr<double>() + offset, data<double>(coef), data<double>(core), axes, alpha);
    }
    return;
  }
  at::Tensor view = out.as_strided(sizes, strides, out.storage_offset() + offset);
  if (coef.defined() && core.defined()) {
    view.addcmul_(coef, core, alpha);
  } else if (coef.defined() || core.defined()) {
    view.add_(coef.defined() ? coef : core, alpha);
  } else {
    view.add_(alpha);
  }
}

}  // namespace hesse::kernels
