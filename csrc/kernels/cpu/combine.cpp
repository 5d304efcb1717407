#include "kernels/combine.h"

#include "combine_loops.h"
#include "kernels/recorder.h"
#include "kernels/workspace.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/TensorUtils.h>
#include <c10/core/GradMode.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <atomic>
#include <optional>

namespace hesse::kernels {

namespace {

constexpr int64_t kShort = 8;  // a loop of fewer turns costs more than what it does

using Axes = c10::SmallVector<Axis, 8>;
using Strides = c10::SmallVector<int64_t, 8>;
using Sizes = c10::SmallVector<int64_t, 8>;

enum class Instructions { baseline, avx2, avx512 };

Instructions widest() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("fma"))
    return Instructions::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Instructions::avx2;
#endif
  return Instructions::baseline;
}

std::atomic<Instructions> instructions{widest()};

template <typename T>
void run(const Loops<T>& loops) {
  switch (instructions.load(std::memory_order_relaxed)) {
    case Instructions::avx512:
      return run_avx512(loops);
    case Instructions::avx2:
      return run_avx2(loops);
    case Instructions::baseline:
      return run_baseline(loops);
  }
}

int64_t stride_of(const at::Tensor& f, size_t d) {
  const auto axis = static_cast<int64_t>(d);
  return f.defined() && f.size(axis) > 1 ? f.stride(axis) : 0;
}

// Axes by the stride they write with; neighbours that run on into each other are one.
Axes loops_of(at::IntArrayRef sizes, at::IntArrayRef strides, const at::Tensor& a, const at::Tensor& b) {
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
  auto smooth = [](const Axis& x) {
    return (x.out == 0 || x.out == 1) && (x.a == 0 || x.a == 1) && (x.b == 0 || x.b == 1);
  };
  // The innermost loop: the longest smooth one; where none is long, the one that writes to neighbours, or if
  // that is short the next.
  size_t inner = merged.size() - 1;
  int64_t longest = kShort - 1;
  for (size_t d = 0; d < merged.size(); ++d) {
    if (smooth(merged[d]) && merged[d].n > longest) longest = merged[inner = d].n;
  }
  if (longest < kShort && inner > 0 && merged[inner].n < kShort && merged[inner - 1].n > merged[inner].n)
    --inner;
  std::rotate(merged.begin() + inner, merged.begin() + inner + 1, merged.end());
  return merged;
}

// A transposing pass: the innermost axis jumps through a factor, and another one reads it smoothly but writes
// with jumps. Cut into tiles, what is read stays in the cache until all of it is used. Returns that other
// axis.
std::optional<size_t> transposed_axis(const Axes& axes) {
  constexpr int64_t line = 16;
  const Axis& inner = axes.back();
  if (inner.out == 0 || inner.n < line || std::max(inner.a, inner.b) < line) return std::nullopt;
  for (size_t d = 0; d + 1 < axes.size(); ++d) {
    const Axis& x = axes[d];
    if (x.n >= line && x.a <= 1 && x.b <= 1 && x.a + x.b > 0 && x.out > inner.out) return d;
  }
  return std::nullopt;
}

template <typename T>
void run_tiled(const Loops<T>& loops, size_t across) {
  constexpr int64_t rows = 16, columns = 64;
  const size_t inner = loops.rank - 1;
  Axes axes(loops.axes, loops.axes + loops.rank);
  const int64_t n = axes[across].n, m = axes[inner].n;
  for (int64_t i = 0; i < n; i += rows) {
    for (int64_t j = 0; j < m; j += columns) {
      axes[across].n = std::min(rows, n - i);
      axes[inner].n = std::min(columns, m - j);
      Loops<T> tile = loops;
      tile.axes = axes.data();
      tile.out += i * axes[across].out + j * axes[inner].out;
      tile.a += i * axes[across].a + j * axes[inner].a;
      tile.b += i * axes[across].b + j * axes[inner].b;
      run(tile);
    }
  }
}

template <typename T>
void run_all(const Loops<T>& loops) {
  const auto across = transposed_axis(Axes(loops.axes, loops.axes + loops.rank));
  across ? run_tiled(loops, *across) : run(loops);
}

template <typename T>
const T* data(const at::Tensor& t) {
  static constexpr T one = 1;
  return t.defined() ? t.const_data_ptr<T>() : &one;
}

template <typename T>
void combine_loops(Into into, const at::Tensor& out, at::IntArrayRef sizes, at::IntArrayRef strides,
                   int64_t offset, const at::Tensor& a, const at::Tensor& b, double alpha) {
  Axes axes = loops_of(sizes, strides, a, b);
  bool sums_outside = false;
  for (size_t d = 0; d + 1 < axes.size(); ++d) sums_outside = sums_outside || axes[d].out == 0;
  if (into == Into::write && sums_outside) {
    out.zero_();
    into = Into::add;
  }
  Loops<T> all{out.data_ptr<T>() + offset, data<T>(a),         data<T>(b), axes.data(), axes.size(),
               static_cast<T>(alpha),      into == Into::write};
  // Threads share the outermost axis that is written along.
  constexpr int64_t worth_a_thread = 65536;
  const auto shared = std::find_if(axes.begin(), axes.end(), [](const Axis& x) { return x.out != 0; });
  int64_t work = 1;
  for (const Axis& x : axes) work *= x.n;
  if (work < 2 * worth_a_thread || shared == axes.end()) return run_all(all);
  const int64_t grain = std::max<int64_t>(1, worth_a_thread * shared->n / work);
  at::parallel_for(0, shared->n, grain, [&](int64_t begin, int64_t end) {
    Axes mine = axes;
    mine[shared - axes.begin()].n = end - begin;
    Loops<T> part = all;
    part.out += begin * shared->out;
    part.a += begin * shared->a;
    part.b += begin * shared->b;
    part.axes = mine.data();
    run_all(part);
  });
}

bool plain(const at::Tensor& t, at::ScalarType type) {
  return !t.defined() || (t.scalar_type() == type && t.device().is_cpu() && t.layout() == at::kStrided &&
                          !t.is_neg() && !t._is_zerotensor());
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

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names{"baseline", "avx2", "avx512"};
  names.resize(static_cast<size_t>(widest()) + 1);
  return names;
}

void use_instruction_set(const std::string& name) {
  const std::vector<std::string> names = instruction_sets();
  const auto it = std::find(names.begin(), names.end(), name);
  TORCH_CHECK(it != names.end(), "hesse: this processor does not have the instruction set ", name);
  instructions = static_cast<Instructions>(it - names.begin());
}

bool has_loops(const at::Tensor& a, const at::Tensor& b) {
  const at::ScalarType type = (a.defined() ? a : b).scalar_type();
  return (type == at::kFloat || type == at::kDouble) && !c10::GradMode::is_enabled() && plain(a, type) &&
         plain(b, type);
}

void combine(Into into, const at::Tensor& out, at::IntArrayRef sizes, at::IntArrayRef strides, int64_t offset,
             const at::Tensor& a, const at::Tensor& b, double alpha) {
  const auto type = out.scalar_type();
  if (has_loops(out, a) && plain(b, type)) {
    if (type == at::kFloat) {
      combine_loops<float>(into, out, sizes, strides, offset, a, b, alpha);
    } else {
      combine_loops<double>(into, out, sizes, strides, offset, a, b, alpha);
    }
    if (Recorder* r = recorder()) {
      r->wrote({out, a, b}, [=, sizes = Sizes(sizes), strides = Strides(strides)](const auto& t) {
        combine(into, t[0], sizes, strides, offset, t[1], t[2], alpha);
        return at::Tensor();
      });
    }
    return;
  }
  if (into == Into::write) out.zero_();
  at::Tensor view = out.as_strided(sizes, strides, out.storage_offset() + offset);
  if (a.defined() && b.defined()) {
    view.addcmul_(a, b, alpha);
  } else if (a.defined() || b.defined()) {
    view.add_(a.defined() ? a : b, alpha);
  } else {
    view.add_(alpha);
  }
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
