// Pooling is linear in the image once the saved indices are known, and acts on the last two axes alone.
// Averages over tiles that do not overlap are sums of a view; all else is a map along those axes:
//
//     average   y[.., i, j] = sum of the window / its count
//     maximum   y[.., p] = x[.., index[.., p]],   both with their two axes flattened
#include "elementwise.h"
#include "picks.h"

namespace hesse::rules {

namespace {

using Average = gen::AvgPool2DBackward0;
using Maximum = gen::MaxPool2DWithIndicesBackward0;

// f on rows [R, D, H, W], as images of one channel.
template <class F>
AxesMap on_images(F f) {
  return [f](const Tensor& rows, const Tensor&) {
    const Tensor y = f(rows.reshape({-1, 1, rows.size(2), rows.size(3)}));
    return y.reshape({rows.size(0), rows.size(1), y.size(2), y.size(3)});
  };
}

template <class F>
Tangent map_last_two(const Tangent& t, const Shape& out, F f) {
  const auto rank = static_cast<int64_t>(out.size());
  return map_axes(t, {rank - 2, rank - 1}, {out[rank - 2], out[rank - 1]}, on_images(f));
}

// Windows side by side that all lie within the image: [..., H', h, W', w] of its leading part.
struct Tiles {
  Geometry part;  // of the image that they cover
  Shape split;
  Shape inner;  // the axes h and w
  double weight;
};

std::optional<Tiles> tiles(Local& l) {
  auto& n = node<Average>(l);
  const Shape &in = l.in_shape[0], &out = l.out_shape[0];
  const size_t rank = in.size();
  auto at = [](const std::vector<int64_t>& v, size_t i) { return v[v.size() == 1 ? 0 : i]; };
  Tiles t{{in, row_major(in), 0}, Shape(in.begin(), in.end() - 2), {}, 1.0};
  int64_t count = 1;
  for (size_t i = 0; i < 2; ++i) {
    const int64_t kernel = at(n.kernel_size, i), size = out[rank - 2 + i];
    const bool apart = n.stride.empty() || at(n.stride, i) == kernel;
    if (!apart || at(n.padding, i) != 0 || size * kernel > in[rank - 2 + i]) return std::nullopt;
    t.part.size[rank - 2 + i] = size * kernel;
    t.split.append({size, kernel});
    t.inner.push_back(static_cast<int64_t>(rank - 1 + 2 * i));
    count *= kernel;
  }
  t.weight = 1.0 / static_cast<double>(n.divisor_override.value_or(count));
  return t;
}

Tangents push_average(Local& l, const Tangents& dx) {
  if (const auto t = tiles(l)) {
    return {scale(sum(view(take(dx[0], t->part), t->split), t->inner, false), t->weight)};
  }
  auto& n = node<Average>(l);
  return {map_last_two(dx[0], l.out_shape[0], [&](const Tensor& x) {
    return at::avg_pool2d(x, n.kernel_size, n.stride, n.padding, n.ceil_mode, n.count_include_pad,
                          n.divisor_override);
  })};
}

Tangents pull_average(Local& l, const Tangents& dgy) {
  if (const auto t = tiles(l)) {
    Shape kept = t->split;
    for (int64_t a : t->inner) kept[a] = 1;
    const Tangent spread = view(expand(view(dgy[0], kept), t->split), t->part.size);
    return {scale(put(spread, t->part, l.in_shape[0]), t->weight)};
  }
  auto& n = node<Average>(l);
  const Shape& in = l.in_shape[0];
  return {map_last_two(dgy[0], in, [&](const Tensor& g) {
    const Tensor image = at::empty({g.size(0), 1, in[in.size() - 2], in[in.size() - 1]}, g.options());
    return at::avg_pool2d_backward(g, image, n.kernel_size, n.stride, n.padding, n.ceil_mode,
                                   n.count_include_pad, n.divisor_override);
  })};
}

Shape flat(const Shape& shape) {
  Shape s(shape.begin(), shape.end() - 2);
  s.push_back(shape[shape.size() - 2] * shape[shape.size() - 1]);
  return s;
}

// Along the last axis, at the saved indices.
Tangent map_flat(Local& l, const Tangent& t, const Shape& in, const Shape& out, const AxesMap& f) {
  const Shape from = flat(in), to = flat(out);
  const auto last = static_cast<int64_t>(from.size()) - 1;
  return view(map_axes(view(t, from), {last}, {to[last]}, f, l.saved[0]), out);
}

}  // namespace

void pooling() {
  {
    Rule rule;
    rule.push = push_average;
    rule.pull = pull_average;
    add_rule("AvgPool2DBackward0", rule);
  }
  {
    Rule rule;
    rule.save = [](Local& l) {
      l.saved = {l.unpack(node<Maximum>(l).result1_).reshape(flat(l.out_shape[0]))};
    };
    rule.push = [](Local& l, const Tangents& dx) -> Tangents {
      return {map_flat(l, dx[0], l.in_shape[0], l.out_shape[0], gather_last)};
    };
    rule.pull = [](Local& l, const Tangents& dgy) -> Tangents {
      const AxesMap f = scatter_last(flat(l.in_shape[0]).back());
      return {map_flat(l, dgy[0], l.out_shape[0], l.in_shape[0], f)};
    };
    add_rule("MaxPool2DWithIndicesBackward0", rule);
  }
}

}  // namespace hesse::rules
