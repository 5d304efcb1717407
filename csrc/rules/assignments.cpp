// Values placed at a strided view of a larger one, by ops that are not in place:
//
//     placed        y = 0 outside of the view,   y[view] = v
//     overwritten   y = x outside of the view,   y[view] = v
//
// as_strided_scatter is not among them: PyTorch's gradient of it is that of the view where it should be that
// of the rest, so its node is driven.
#include "assignments.h"

#include "factors.h"
#include "geometries.h"

namespace hesse::rules {

namespace {

// geometry(node, y's shape) -> the view.
template <class N, class G>
void placed(const char* name, G geometry) {
  Rule rule;
  rule.push = [geometry](Local& l, const Tangents& dx) -> Tangents {
    return {put(dx[0], geometry(node<N>(l), l.out_shape[0]), l.out_shape[0])};
  };
  rule.pull = [geometry](Local& l, const Tangents& dgy) -> Tangents {
    return {take(dgy[0], geometry(node<N>(l), l.out_shape[0]))};
  };
  add_rule(name, std::move(rule));
}

// Along a diagonal of the value lies no axis. So that what is tied stays so, x goes along one of the two
// axes, for all of the other, and a mask leaves the diagonal.
void diag_embed() {
  using N = gen::DiagEmbedBackward0;
  Rule rule;
  rule.push = [](Local& l, const Tangents& dx) -> Tangents {
    auto& n = node<N>(l);
    const Shape &y = l.out_shape[0], &x = l.in_shape[0];
    const int64_t a = wrap(n.dim1, y), b = wrap(n.dim2, y), other = std::max(a, b);
    if (l.memo.empty()) {
      Shape line(y.size(), 1);
      line[a] = y[a];
      line[b] = y[b];
      const auto options = l.out_options[0].requires_grad(std::nullopt);
      const Tensor ones = at::ones({y[a], y[b]}, options);
      const Tensor mask = ones.tril(n.offset).triu(n.offset);
      l.memo = {(a < b ? mask : mask.t()).reshape(line)};
    }
    // x's last axis, at its place along the first of the two, behind which the other has size 1.
    const int64_t first = std::min(a, b), before = std::max<int64_t>(first == a ? -n.offset : n.offset, 0);
    Shape column = y;
    column[other] = 1;
    const Geometry all = sliced(column, first, before, x.back());
    Geometry g{{}, {}, all.offset};
    auto append = [&](int64_t d) {
      g.size.push_back(all.size[d]);
      g.stride.push_back(all.stride[d]);
    };
    for (int64_t d = 0; d < static_cast<int64_t>(y.size()); ++d) {
      if (d != first && d != other) append(d);
    }
    append(first);
    return {select(expand(put(dx[0], g, column), y), l.memo[0])};
  };
  rule.pull = [](Local& l, const Tangents& dgy) -> Tangents {
    return {take(dgy[0], diagonal(node<N>(l), l.out_shape[0]))};
  };
  add_rule("DiagEmbedBackward0", std::move(rule));
}

// 1 outside of the view, 0 in it; axes that the view has whole stay of size 1.
Tensor outside(const Geometry& g, const Shape& shape, const at::TensorOptions& options) {
  Tensor mask = at::ones(shape, options);
  mask.as_strided(g.size, g.stride, g.offset).zero_();
  const Shape strides = row_major(shape);
  for (size_t a = 0; a < shape.size(); ++a) {
    for (size_t j = 0; j < g.size.size(); ++j) {
      if (shape[a] > 1 && g.size[j] == shape[a] && g.stride[j] == strides[a]) mask = mask.narrow(a, 0, 1);
    }
  }
  return mask;
}

template <class N, class G>
void overwritten(const char* name, G geometry) {
  Rule rule;
  auto mask = [geometry](Local& l) {
    if (l.memo.empty()) {
      const Geometry g = geometry(node<N>(l), l.out_shape[0]);
      l.memo = {outside(g, l.out_shape[0], l.out_options[0].requires_grad(std::nullopt))};
    }
    return l.memo[0];
  };
  rule.push = [geometry, mask](Local& l, const Tangents& dx) -> Tangents {
    const Geometry g = geometry(node<N>(l), l.out_shape[0]);
    Tangent dy = zero_like(dx[0].zero() ? dx[1] : dx[0], l.out_shape[0]);
    dy.options = l.out_options[0].requires_grad(std::nullopt);
    if (!dx[0].zero()) accumulate(dy, select(cast(dx[0], dtype_of(l)), mask(l)));
    if (!dx[1].zero()) accumulate(dy, put(expand(cast(dx[1], dtype_of(l)), g.size), g, l.out_shape[0]));
    return {std::move(dy)};
  };
  rule.pull = [geometry, mask](Local& l, const Tangents& dgy) {
    Tangents dgx(2);
    if (l.wanted[0]) dgx[0] = select(dgy[0], mask(l));
    if (l.wanted[1]) dgx[1] = take(dgy[0], geometry(node<N>(l), l.out_shape[0]));
    return dgx;
  };
  add_rule(name, std::move(rule));
}

}  // namespace

void assignments() {
  const auto by_select = [](auto& n, const Shape& shape) { return selected(n, shape); };
  const auto by_slice = [](auto& n, const Shape& shape) { return sliced(n, shape); };
  const auto by_diagonal = [](auto& n, const Shape& shape) { return diagonal(n, shape); };
  diag_embed();
  // The gradients of views, as ops of their own.
  placed<gen::SelectBackwardBackward0>("SelectBackwardBackward0", by_select);
  placed<gen::SliceBackwardBackward0>("SliceBackwardBackward0", by_slice);
  placed<gen::DiagonalBackwardBackward0>("DiagonalBackwardBackward0", by_diagonal);
  placed<gen::UnfoldBackwardBackward0>("UnfoldBackwardBackward0", [](auto& n, const Shape& shape) {
    return unfolded(shape, n.dim, n.size, n.step);
  });

  overwritten<gen::SelectScatterBackward0>("SelectScatterBackward0", by_select);
  overwritten<gen::SliceScatterBackward0>("SliceScatterBackward0", by_slice);
  overwritten<gen::DiagonalScatterBackward0>("DiagonalScatterBackward0", by_diagonal);
}

}  // namespace hesse::rules
