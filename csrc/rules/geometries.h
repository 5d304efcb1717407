// Strided views of a value of a given shape, as ops and nodes name them.
#pragma once

#include "shapes.h"

#include <algorithm>
#include <optional>

namespace hesse::rules {

inline Geometry whole(const Shape& shape) { return {shape, row_major(shape), 0}; }

inline Geometry swapped(const Shape& shape, int64_t a, int64_t b) {
  Geometry g = whole(shape);
  if (shape.empty()) return g;
  a = wrap(a, shape);
  b = wrap(b, shape);
  std::swap(g.size[a], g.size[b]);
  std::swap(g.stride[a], g.stride[b]);
  return g;
}

inline Geometry permuted(const Shape& shape, c10::IntArrayRef dims) {
  const Geometry g = whole(shape);
  Geometry p;
  for (int64_t d : dims) {
    p.size.push_back(g.size[wrap(d, shape)]);
    p.stride.push_back(g.stride[wrap(d, shape)]);
  }
  return p;
}

// Every step-th of `length` elements of an axis.
inline Geometry sliced(const Shape& shape, int64_t dim, int64_t start, int64_t length, int64_t step = 1) {
  Geometry g = whole(shape);
  g.offset = start * g.stride[dim];
  g.size[dim] = length;
  g.stride[dim] *= step;
  return g;
}

// Element `index` of an axis, which goes.
inline Geometry element(const Shape& shape, int64_t dim, int64_t index) {
  Geometry g = sliced(shape, dim, index < 0 ? index + shape[dim] : index, 1);
  g.size.erase(g.size.begin() + dim);
  g.stride.erase(g.stride.begin() + dim);
  return g;
}

// The same of nodes that saved the arguments of select, slice, diagonal, unfold and as_strided.
template <class N>
Geometry selected(N& n, const Shape& shape) {
  return element(shape, wrap(n.dim, shape), n.index.expect_int());
}

template <class N>
Geometry sliced(N& n, const Shape& shape) {
  const int64_t dim = wrap(n.dim, shape), size = shape[dim], step = n.step.expect_int();
  auto clip = [size](const std::optional<c10::SymInt>& at, int64_t open) {
    const int64_t i = at ? at->expect_int() : open;
    return std::clamp<int64_t>(i < 0 ? i + size : i, 0, size);
  };
  const int64_t start = clip(n.start, 0), end = std::max(start, clip(n.end, size));
  return sliced(shape, dim, start, (end - start + step - 1) / step, step);
}

template <class N>
Geometry diagonal(N& n, const Shape& shape) {
  const int64_t a = wrap(n.dim1, shape), b = wrap(n.dim2, shape);
  const Geometry all = whole(shape);
  const int64_t length =
      n.offset >= 0 ? std::min(shape[a], shape[b] - n.offset) : std::min(shape[a] + n.offset, shape[b]);
  Geometry g;
  g.offset = n.offset >= 0 ? n.offset * all.stride[b] : -n.offset * all.stride[a];
  for (int64_t d = 0; d < static_cast<int64_t>(shape.size()); ++d) {
    if (d == a || d == b) continue;
    g.size.push_back(all.size[d]);
    g.stride.push_back(all.stride[d]);
  }
  g.size.push_back(std::max<int64_t>(length, 0));
  g.stride.push_back(all.stride[a] + all.stride[b]);
  return g;
}

inline Geometry unfolded(const Shape& shape, int64_t axis, int64_t size, int64_t step) {
  if (shape.empty()) return Geometry{{size}, {1}, 0};
  const int64_t dim = wrap(axis, shape);
  Geometry g = whole(shape);
  g.size.push_back(size);
  g.stride.push_back(g.stride[dim]);
  g.size[dim] = (shape[dim] - size) / step + 1;
  g.stride[dim] *= step;
  return g;
}

// as_strided speaks of the input's memory: a view of its values only where the two agree.
template <class N>
std::optional<Geometry> strided_memory(N& n) {
  const Shape stride = ints(n.self_geometry.sym_strides()), size = ints(n.self_geometry.sym_sizes());
  if (!is_row_major(size, stride)) return std::nullopt;
  const int64_t from = n.self_geometry.sym_storage_offset().expect_int();
  const int64_t offset = n.storage_offset ? n.storage_offset->expect_int() - from : 0;
  Geometry g{ints(n.size), ints(n.stride), offset};
  int64_t last = g.offset;
  for (size_t d = 0; d < g.size.size(); ++d) last += (g.size[d] - 1) * g.stride[d];
  if (g.offset < 0 || last >= numel_of(size)) return std::nullopt;
  return g;
}

// A linear map that reads the value in blocks: out = sum over the blocks of put(take(x, from), to).
struct Block {
  Geometry from, to;
};

// The map onto a value of `shape`, or (`back`) its transpose.
inline Tangent moved(const Tangent& t, const Shape& shape, const std::vector<Block>& blocks, bool back) {
  Tangent out = zero_like(t, shape);
  for (const Block& b : blocks)
    accumulate(out, put(take(t, back ? b.to : b.from), back ? b.from : b.to, shape));
  return out;
}

}  // namespace hesse::rules
