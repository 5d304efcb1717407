// Strided views and their transposes.
#include "verbs.h"

#include "ledger.h"
#include "verbs/oblique.h"
#include "verbs/terms.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace hesse {

namespace {

// Keeps the part of a term that lies on start + step * [0, count) of an axis, renumbered from 0.
enum class Cut { kept, dropped, irregular };

Cut cut_axis(Term& term, Placement& p, int64_t a, int64_t start, int64_t step, int64_t count, int64_t size) {
  if (start == 0 && step == 1 && count == size) return Cut::kept;
  int64_t d = -1;
  for (int64_t i = 0; i < term.rank(); ++i) {
    if (p.axis[i] != a) continue;
    if (d >= 0) return Cut::irregular;
    d = i;
  }
  const int64_t from = p.offset[a] - start;
  if (d < 0) {
    if (from < 0 || from % step != 0 || from / step >= count) return Cut::dropped;
    p.offset[a] = from / step;
    return Cut::kept;
  }
  const int64_t s = p.step[d];
  // Index i of the dimension lands on (from + i s) / step.
  int64_t first = 0, stride = 1;
  if (s % step == 0) {
    if (from % step != 0) return Cut::dropped;
  } else if (step % s == 0) {
    if (from % s != 0) return Cut::dropped;
    stride = step / s;
    first = ((-from / s) % stride + stride) % stride;
  } else {
    return Cut::irregular;
  }
  if (from + first * s < 0) {
    const int64_t jump = stride * s;
    first += (-(from + first * s) + jump - 1) / jump * stride;
  }
  const int64_t last_value = (count - 1) * step;  // largest (from + i s) allowed
  if (first >= term.dims[d].n || from + first * s > last_value) return Cut::dropped;
  const int64_t last = std::min(term.dims[d].n - 1, (last_value - from) / s);
  const int64_t n = (last - first) / stride + 1;
  for (Tensor* f : {&term.coef, &term.core}) {
    if (varies(*f, d)) *f = f->slice(d, first, last + 1, stride);
  }
  Dim& dim = term.dims[d];
  dim.n = n;
  if (dim.k) {
    dim.k = hold(term, dim.k->index.slice(0, first, last + 1, stride), dim.k->size);
  } else {
    term.k0 += first * dim.ks;
    dim.ks *= stride;
  }
  p.offset[a] = (from + first * s) / step;
  p.step[d] = stride * s / step;
  return Cut::kept;
}

// Assigns each geometry dimension to an axis of `shape`: axis[j] (-1: broadcast), step[j], start per axis.
bool resolve(const Geometry& g, c10::IntArrayRef shape, Shape& axis, Shape& step, Shape& start) {
  const Shape strides = row_major(shape);
  const int64_t axes = static_cast<int64_t>(shape.size());
  start.assign(axes, 0);
  for (int64_t a = 0; a < axes; ++a) start[a] = (g.offset / strides[a]) % shape[a];
  std::vector<bool> used(axes, false);
  axis.clear();
  step.clear();
  for (size_t j = 0; j < g.size.size(); ++j) {
    if (g.size[j] == 1 || g.stride[j] == 0) {
      axis.push_back(-1);
      step.push_back(1);
      continue;
    }
    int64_t a = 0;
    while (a < axes && (shape[a] == 1 || strides[a] > g.stride[j])) ++a;
    if (a == axes || g.stride[j] % strides[a] != 0 || used[a]) return false;
    const int64_t s = g.stride[j] / strides[a];
    if (start[a] + (g.size[j] - 1) * s >= shape[a]) return false;
    used[a] = true;
    axis.push_back(a);
    step.push_back(s);
  }
  return true;
}

bool tied(const Tangent& t) {
  return std::any_of(t.terms.begin(), t.terms.end(), [](const Term& term) {
    return std::any_of(term.dims.begin(), term.dims.end(),
                       [](const Dim& d) { return d.ks != 0 && d.vs != 0; });
  });
}

// Windows that overlap meet an element several times, which one term with a tie cannot: each place in the
// window is taken by itself, if there are few. The dimension of these places, -1 if there is none.
int64_t window_of(const Tangent& t, const Geometry& g) {
  constexpr int64_t most = 8;
  Geometry moving = g;  // where nothing is broadcast
  for (size_t j = 0; j < g.size.size(); ++j) moving.size[j] = g.stride[j] == 0 ? 1 : g.size[j];
  if (!overlaps(moving) || !tied(t)) return -1;
  int64_t found = -1;
  for (size_t j = 0; j < g.size.size(); ++j) {
    if (moving.size[j] < 2) continue;
    if (found < 0 || g.size[j] < g.size[found]) found = static_cast<int64_t>(j);
  }
  return g.size[found] <= most ? found : -1;
}

// One of these places: in the view, and in what is viewed.
Geometry place_of_view(const Geometry& g, int64_t j, int64_t i) {
  Geometry at{g.size, row_major(g.size), 0};
  at.offset = i * at.stride[j];
  at.size[j] = 1;
  return at;
}
Geometry place_viewed(Geometry g, int64_t j, int64_t i) {
  g.offset += i * g.stride[j];
  g.size[j] = 1;
  return g;
}

Tensor strided_rows(const Tensor& rows, const Geometry& g) {
  const int64_t numel = numel_of(rows.sizes().slice(1));
  Shape size{rows.size(0)}, stride{numel};
  size.append(g.size.begin(), g.size.end());
  stride.append(g.stride.begin(), g.stride.end());
  return rows.as_strided(size, stride, rows.storage_offset() + g.offset);
}

}  // namespace

bool overlaps(const Geometry& g) {
  c10::SmallVector<std::pair<int64_t, int64_t>, 6> dims;
  for (size_t j = 0; j < g.size.size(); ++j) {
    if (g.size[j] > 1) dims.emplace_back(g.stride[j], g.size[j]);
  }
  std::sort(dims.begin(), dims.end());
  int64_t reach = 0;
  for (const auto& [stride, size] : dims) {
    if (stride <= reach) return true;
    reach += (size - 1) * stride;
  }
  return false;
}

Tangent take(Tangent t, const Geometry& g) {
  if (numel_of(g.size) == 0) return zero_like(t, g.size);
  Shape axis, step, start;
  if (!resolve(g, t.shape, axis, step, start)) {
    if (const int64_t j = window_of(t, g); j >= 0) {
      Tangent out = zero_like(t, g.size);
      for (int64_t i = 0; i < g.size[j]; ++i) {
        accumulate(out, put(take(t, place_viewed(g, j, i)), place_of_view(g, j, i), g.size));
      }
      return out;
    }
    if (auto straight = straightened(t, g)) return take(std::move(straight->t), straight->g);
    return map_rows(t, g.size,
                    [&](const Tensor& rows) { return strided_rows(rows.contiguous(), g).contiguous(); });
  }
  const int64_t rank = static_cast<int64_t>(t.shape.size());
  Shape to(rank, -1);
  for (size_t j = 0; j < axis.size(); ++j) {
    if (axis[j] >= 0) to[axis[j]] = static_cast<int64_t>(j);
  }
  const Shape strides = row_major(g.size);
  Tangent out = zero_like(t, g.size);
  for (Term& source : t.terms) {
    Term term = source;
    Placement p;
    auto count_on = [&](int64_t a) { return to[a] < 0 ? 1 : g.size[to[a]]; };
    auto step_on = [&](int64_t a) { return to[a] < 0 ? 1 : step[to[a]]; };
    place_or_densify(
        t, term, p, [&](int64_t a) { return start[a] == 0 && step_on(a) == 1 && count_on(a) == t.shape[a]; });
    Cut cut = Cut::kept;
    for (int attempt = 0; attempt < 2; ++attempt) {
      for (int64_t a = 0; a < rank && cut == Cut::kept; ++a) {
        cut = cut_axis(term, p, a, start[a], step_on(a), count_on(a), t.shape[a]);
      }
      if (cut != Cut::irregular) break;
      // Two dimensions share the axis: as a box there is one.
      ledger().densified.insert(ledger().op);
      term = densify(t, source);
      TORCH_INTERNAL_ASSERT(place(term, t.shape, p));
      cut = Cut::kept;
    }
    if (cut == Cut::dropped) continue;
    move_axes(term, p, to, g.size);
    for (size_t j = 0; j < axis.size(); ++j) {
      if (axis[j] < 0 && g.size[j] > 1) append_dim(term, {g.size[j], 0, strides[j]});
    }
    squeeze(term);
    settle(term);
    out.terms.push_back(std::move(term));
  }
  return out;
}

Tangent put(Tangent t, const Geometry& g, c10::IntArrayRef shape) {
  Shape broadcast;
  for (size_t j = 0; j < g.size.size(); ++j) {
    if (g.stride[j] == 0 && g.size[j] > 1) broadcast.push_back(static_cast<int64_t>(j));
  }
  if (!broadcast.empty()) {
    Geometry rest = g;
    for (int64_t j : broadcast) rest.size[j] = 1;
    return put(sum(std::move(t), broadcast, true), rest, shape);
  }
  if (const int64_t j = window_of(t, g); j >= 0) {
    Tangent out = zero_like(t, shape);
    for (int64_t i = 0; i < g.size[j]; ++i) {
      accumulate(out, put(take(t, place_of_view(g, j, i)), place_viewed(g, j, i), shape));
    }
    return out;
  }
  if (overlaps(g)) {
    const Shape target(shape.begin(), shape.end());
    return map_rows(t, shape, [&](const Tensor& rows) {
      const int64_t numel = numel_of(target);
      const Tensor index =
          at::arange(numel, rows.options().dtype(at::kLong)).as_strided(g.size, g.stride, g.offset);
      Shape size{rows.size(0)};
      size.append(target.begin(), target.end());
      return at::zeros({rows.size(0), numel}, rows.options())
          .index_add(1, index.reshape({-1}), rows.reshape({rows.size(0), -1}))
          .reshape(size);
    });
  }
  for (Term& term : t.terms) {
    Placement p;
    place_or_densify(t, term, p, anywhere);
    for (int64_t d = 0; d < term.rank(); ++d) {
      term.dims[d].vs = p.axis[d] < 0 ? 0 : p.step[d] * g.stride[p.axis[d]];
    }
    term.v0 = g.offset;
    for (size_t a = 0; a < p.offset.size(); ++a) term.v0 += p.offset[a] * g.stride[a];
  }
  t.shape = Shape(shape.begin(), shape.end());
  return t;
}

}  // namespace hesse
