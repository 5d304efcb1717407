#include "picks.h"

#include "reads.h"
#include "shapes.h"

#include <ATen/ExpandUtils.h>

#include <algorithm>

namespace hesse::rules {

Tensor gather_last(const Tensor& rows, const Tensor& index) {
  if (index.size(0) == 1) return rows.index_select(-1, index.select(0, 0));
  return rows.gather(-1, index.expand({rows.size(0), index.size(0), index.size(1)}));
}

AxesMap scatter_last(int64_t n) {
  return [n](const Tensor& rows, const Tensor& index) {
    const Tensor zeros = at::zeros({rows.size(0), rows.size(1), n}, rows.options());
    if (index.size(0) == 1) return zeros.index_add(-1, index.select(0, 0), rows);
    return zeros.scatter_add(-1, index.expand({rows.size(0), index.size(0), index.size(1)}), rows);
  };
}

Side::Side(const Shape& shape, const Shape& groups)
    : whole(shape), grouped(groups), part{groups, row_major(groups), 0} {
  for (size_t a = 0; a < groups.size(); ++a) order.push_back(static_cast<int64_t>(a));
}

void Side::permute(c10::IntArrayRef to) {
  const Geometry old = part;
  order = Shape(to.begin(), to.end());
  for (size_t i = 0; i < order.size(); ++i) {
    part.size[i] = old.size[order[i]];
    part.stride[i] = old.stride[order[i]];
  }
}

namespace {

// The part with all but its carried axes as one.
Shape flattened(const Side& side, int64_t carried) {
  Shape shape(side.part.size.begin(), side.part.size.begin() + carried);
  shape.push_back(numel_of(c10::IntArrayRef(side.part.size).slice(carried)));
  return shape;
}

// Larger than what is seen of it.
bool larger(const Shape& value, const Shape& seen) {
  if (value.size() != seen.size()) return false;
  for (size_t a = 0; a < seen.size(); ++a) {
    if (value[a] > seen[a]) return true;
  }
  return false;
}

Tangent weighted(const Picks& p, Tangent t) {
  return p.weight.defined() ? select(std::move(t), p.weight) : t;
}

// One index for all that is carried.
bool same_for_all(const Picks& p) { return p.index.numel() == p.index.size(-1); }

// Only the sizes along which an index varies.
Tensor without_repeats(Tensor index, int64_t carried) {
  for (int64_t a = 0; a < carried; ++a) {
    if (index.size(a) > 1 && index.stride(a) == 0) index = index.narrow(a, 0, 1);
  }
  return index;
}

Tensor from_end(const Tensor& index, int64_t n) {
  return at::remainder(index.to(at::kLong), std::max<int64_t>(n, 1));
}

bool is_mask(const Tensor& index) {
  return index.scalar_type() == at::kBool || index.scalar_type() == at::kByte;
}

// Where a mask holds, counted flat. A known count spares the device a word with the host.
Tensor places(const Tensor& mask, std::optional<int64_t> count) {
  const Tensor line = mask.reshape({-1});
  return (count ? at::nonzero_static(line, *count) : at::nonzero(line)).select(1, 0);
}

}  // namespace

Tangent fitted(Tangent t, const Shape& seen) {
  if (numel_of(t.shape) == numel_of(seen)) return view(std::move(t), seen);
  if (!larger(t.shape, seen)) return expand(std::move(t), seen);
  const Geometry part{seen, row_major(t.shape), 0};
  return take(std::move(t), part);
}

Tangent fitted_back(Tangent t, const Shape& shape) {
  if (t.numel() == numel_of(shape)) return view(std::move(t), shape);
  if (!larger(shape, t.shape)) return sum_to(std::move(t), shape);
  const Geometry part{t.shape, row_major(shape), 0};
  return put(std::move(t), part, shape);
}

Tangent moved(const Picks& p, Tangent t, const Side& from, const Side& to, const AlongAxis& along) {
  if (numel_of(from.part.size) == 0 || numel_of(to.part.size) == 0) return zero_like(t, to.whole);
  t = take(view(fitted(std::move(t), from.whole), from.grouped), from.part);
  const Shape in = flattened(from, p.carried), out = flattened(to, p.carried);
  t = along(view(std::move(t), in), p.carried, out.back());
  return view(put(view(std::move(t), to.part.size), to.part, to.grouped), to.whole);
}

Tangent pick(const Picks& p, Tangent t) {
  auto along = [&p](Tangent s, int64_t axis, int64_t size) {
    if (same_for_all(p)) return pick_axis(std::move(s), axis, p.index.reshape({-1}));
    return map_axes(std::move(s), {axis}, {size}, gather_last, p.index);
  };
  return weighted(p, moved(p, std::move(t), p.x, p.y, along));
}

Tangent unpick(const Picks& p, Tangent t) {
  auto along = [&p](Tangent s, int64_t axis, int64_t size) {
    if (same_for_all(p)) return unpick_axis(std::move(s), axis, p.index.reshape({-1}), size);
    return map_axes(std::move(s), {axis}, {size}, scatter_last(size), p.index);
  };
  return moved(p, weighted(p, fitted(std::move(t), p.y.whole)), p.y, p.x, along);
}

Tensor pick(const Picks& p, const Tensor& x) { return value(pick(p, from_value(x))); }
Tensor unpick(const Picks& p, const Tensor& y) { return value(unpick(p, from_value(y))); }

Tensor untouched(const Picks& p, const at::TensorOptions& options) {
  const Geometry& part = p.x.part;
  Shape size(p.index.sizes().begin(), p.index.sizes().end() - 1), line = size;
  line.push_back(flattened(p.x, p.carried).back());
  size.append(part.size.begin() + p.carried, part.size.end());
  const Tensor mask = at::ones(line, options).scatter(-1, p.index, 0).reshape(size);
  if (numel_of(part.size) < numel_of(p.x.grouped)) {
    const Tensor out = at::ones(p.x.grouped, options);
    out.as_strided(part.size, part.stride, part.offset).copy_(mask);
    return out.reshape(p.x.whole);
  }
  Shape back(p.x.order.size());
  for (size_t i = 0; i < back.size(); ++i) back[p.x.order[i]] = static_cast<int64_t>(i);
  const Tensor out = mask.permute(back);
  return p.x.grouped == p.x.whole ? out : out.expand(p.x.grouped).reshape(p.x.whole);
}

Picks along(const Shape& x, int64_t dim, const Tensor& index) {
  const Shape shape(index.sizes().begin(), index.sizes().end());
  if (x.empty() || shape.size() != x.size()) return flat(x, shape, index);  // one element, or none
  Shape order;
  dim = wrap(dim, x);
  for (int64_t a = 0; a < static_cast<int64_t>(x.size()); ++a) {
    if (a != dim) order.push_back(a);
  }
  order.push_back(dim);
  const Tensor last = index.to(at::kLong).permute(order);
  Picks p{Side(x), Side(shape), static_cast<int64_t>(x.size()) - 1, last, {}};
  for (size_t a = 0; a < x.size(); ++a) {
    if (static_cast<int64_t>(a) != dim) p.x.part.size[a] = shape[a];
  }
  p.x.permute(order);
  p.y.permute(order);
  p.index = without_repeats(p.index, p.carried);
  return p;
}

Picks along_vector(const Shape& x, int64_t dim, const Tensor& index) {
  if (x.empty()) return along(x, dim, index.reshape({}));
  Shape shape = x, line(x.size(), 1);
  dim = wrap(dim, x);
  shape[dim] = line[dim] = index.numel();
  return along(x, dim, index.reshape(line).expand(shape));
}

Picks flat(const Shape& x, const Shape& y, const Tensor& index) {
  const int64_t n = numel_of(x);
  return {Side(x, {n}), Side(y, {numel_of(y)}), 0, from_end(index, n).reshape({-1}), {}};
}

std::optional<size_t> lone_mask(const std::vector<Tensor>& indices) {
  std::optional<size_t> found;
  for (size_t i = 0; i < indices.size(); ++i) {
    if (!indices[i].defined()) continue;
    if (found || !is_mask(indices[i])) return std::nullopt;
    found = i;
  }
  return found;
}

namespace {

// One index of several: the axes that it names, how many elements they have, and where among them.
struct Named {
  Shape axes;
  int64_t n = 1;
  Tensor at;
  int64_t shared = -1;  // the axis of all indices' shape along which it counts 0, 1, 2, ... to the end
};

// In x[arange(n), index] the first axis of x is one of the result, tied as any that no index names. Only what
// the host has can be seen to be so.
int64_t counting_axis(const Named& named, const Shape& shape) {
  if (named.axes.size() != 1 || named.n < 2 || named.at.numel() != named.n || !readable(named.at)) return -1;
  const auto lead = static_cast<int64_t>(shape.size()) - named.at.dim();
  for (int64_t a = 0; a < named.at.dim(); ++a) {
    if (named.at.size(a) != named.n || shape[lead + a] != named.n) continue;
    const Tensor line = named.at.reshape({-1});
    return holds((line == at::arange(named.n, line.options())).all()) ? lead + a : -1;
  }
  return -1;
}

}  // namespace

Picks several(const Shape& x, const std::vector<Tensor>& indices, const at::Device& device,
              std::optional<int64_t> count) {
  if (!lone_mask(indices)) count.reset();
  const auto rank = static_cast<int64_t>(x.size());
  std::vector<Named> named;
  Shape free;        // axes that no index names
  size_t ahead = 0;  // how many of them stay in front of what is picked
  bool gap = false;
  int64_t axis = 0;
  for (const Tensor& t : indices) {
    if (!t.defined()) {
      free.push_back(axis++);
      continue;
    }
    if (named.empty()) ahead = free.size();
    gap = gap || free.size() > ahead;
    Named next;
    for (int64_t a = is_mask(t) ? t.dim() : 1; a > 0; --a) {
      next.n *= x[axis];
      next.axes.push_back(axis++);
    }
    next.at = is_mask(t) ? places(t, count) : from_end(t, next.n);
    named.push_back(std::move(next));
  }
  if (named.empty() || gap) ahead = 0;  // indices that lie apart put what they pick in front
  while (axis < rank) free.push_back(axis++);

  std::vector<int64_t> sizes;
  for (const Named& i : named) sizes = at::infer_size(sizes, i.at.sizes());
  const Shape picked(sizes.begin(), sizes.end());
  Tensor line = at::zeros({}, at::TensorOptions(device).dtype(at::kLong));
  Shape x_order = free, y_order, shared, others, mapped;
  for (Named& i : named) {
    const int64_t along = counting_axis(i, picked);
    if (along >= 0 && std::find(shared.begin(), shared.end(), along) == shared.end()) {
      shared.push_back(along);
      x_order.push_back(i.axes[0]);
    } else {
      mapped.append(i.axes.begin(), i.axes.end());
      line = line * i.n + i.at.to(device, /*non_blocking=*/true);
    }
  }
  x_order.append(mapped.begin(), mapped.end());

  Shape y;
  const auto lead = static_cast<int64_t>(ahead), end = lead + static_cast<int64_t>(picked.size());
  for (size_t i = 0; i < ahead; ++i) y.push_back(x[free[i]]);
  y.append(picked.begin(), picked.end());
  for (size_t i = ahead; i < free.size(); ++i) y.push_back(x[free[i]]);
  for (int64_t a = 0; a < static_cast<int64_t>(y.size()); ++a) {
    if (a < lead || a >= end) y_order.push_back(a);
  }
  Shape size(free.size(), 1), order = shared;
  for (int64_t a : shared) {
    y_order.push_back(lead + a);
    size.push_back(picked[a]);
  }
  for (int64_t a = 0; a < static_cast<int64_t>(picked.size()); ++a) {
    if (std::find(shared.begin(), shared.end(), a) != shared.end()) continue;
    order.push_back(a);
    y_order.push_back(lead + a);
  }
  const Tensor index = line.expand(picked).permute(order);
  Picks p{Side(x), Side(y), static_cast<int64_t>(size.size()), {}, {}};
  p.x.permute(x_order);
  p.y.permute(y_order);
  size.push_back(numel_of(index.sizes().slice(shared.size())));
  p.index = index.reshape(size);
  return p;
}

Picks where(const Shape& x, const Tensor& mask, int64_t count) {
  const auto sizes = at::infer_size(x, mask.sizes());
  const Shape whole(sizes.begin(), sizes.end());
  const Tensor full = mask.expand(whole);
  const auto rank = static_cast<int64_t>(whole.size());
  auto repeats = [&full](int64_t a) { return full.size(a) == 1 || full.stride(a) == 0; };
  int64_t begin = 0, end = rank;
  while (begin < rank && repeats(begin)) ++begin;
  while (end > begin && repeats(end - 1)) --end;
  Tensor core = full;
  Shape groups{1, 1, 1};
  for (int64_t a = rank; a-- > 0;) {
    const bool outer = a < begin || a >= end;
    groups[a < begin ? 0 : a < end ? 1 : 2] *= whole[a];
    if (outer) core = core.narrow(a, 0, 1);
  }
  Shape picked = groups;
  picked[1] = numel_of(groups) > 0 ? count / std::max<int64_t>(groups[0] * groups[2], 1) : 0;
  Picks p{Side(whole, groups), Side({count}, picked), 2, {}, {}};
  const Shape order{0, 2, 1};
  p.x.permute(order);
  p.y.permute(order);
  p.index = places(core, picked[1]).reshape({1, 1, picked[1]});
  return p;
}

}  // namespace hesse::rules
