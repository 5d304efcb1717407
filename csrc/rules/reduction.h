// The reduction class: outputs that are sums over the same axes of one input,
//
//     push   dy_o = sum(f_o o dx)          f_o = dy_o/dx, of x's shape
//     pull   dgx  = sum_o f_o o spread(dgy_o)
//
// A row gives the factors f_o and, where the first of them depends on x, the curve. Axes come from the node's
// `dim`; a node that saved none reduces all.
#pragma once

#include "factors.h"

#include <ATen/WrapDimUtils.h>

namespace hesse::rules {

// What a reduction runs over: the axes that go, the shape with those kept as size 1, and how many elements
// meet.
struct Axes {
  Shape in, gone, kept;
  int64_t count = 1;
};

// dims empty: all.
inline Axes axes_of(const Shape& in, c10::ArrayRef<int64_t> dims) {
  const auto rank = static_cast<int64_t>(in.size());
  Axes a{in, {}, in, 1};
  std::vector<bool> gone(in.size(), dims.empty());
  for (int64_t d : dims) {
    if (rank > 0) gone[at::maybe_wrap_dim(d, rank)] = true;
  }
  for (int64_t d = 0; d < rank; ++d) {
    if (!gone[d]) continue;
    a.gone.push_back(d);
    a.kept[d] = 1;
    a.count *= in[d];
  }
  return a;
}

template <class N>
Axes node_axes(N& n, const Local& l) {
  const Shape& in = l.in_shape[0];
  if constexpr (requires { n.dim.list; }) {
    return n.dim.list ? axes_of(in, *n.dim.list) : axes_of(in, {});
  } else if constexpr (requires { n.dim.size(); }) {
    return axes_of(in, n.dim);
  } else if constexpr (requires { n.dim.has_value(); }) {
    return n.dim.has_value() ? axes_of(in, {*n.dim}) : axes_of(in, {});
  } else if constexpr (requires { n.dim; }) {
    return axes_of(in, {n.dim});
  } else {
    return axes_of(in, {});
  }
}

// Sums, kept as size 1; and what undoes their shape.
inline Tangent total(Tangent t, const Axes& a) { return sum(std::move(t), a.gone, true); }
inline Tangent spread(Tangent t, const Axes& a) { return expand(view(std::move(t), a.kept), a.in); }

inline Tangent minus(Tangent a, Tangent b) {
  accumulate(a, scale(std::move(b), -1.0));
  return a;
}

inline Tangents reduction_push(Local& l, const Axes& a, const Tangents& dx) {
  Tangents dy;
  for (size_t o = 0; o < l.first.size(); ++o) {
    dy.push_back(view(total(scale(cast(dx[0], dtype_of(l)), l.first[o]), a), l.out_shape[o]));
  }
  return dy;
}

inline Tangents reduction_pull(Local& l, const Axes& a, const Tangents& dgy) {
  Tangent dgx;
  for (size_t o = 0; o < l.first.size(); ++o) {
    if (dgy[o].zero() || l.first[o].zero()) continue;
    Tangent t = scale(spread(dgy[o], a), l.first[o]);
    if (dgx.K == 0) {
      dgx = std::move(t);
    } else {
      accumulate(dgx, std::move(t));
    }
  }
  return {std::move(dgx)};
}

// slope(node, local, axes) -> one Factor per output. Piecewise linear reductions need no more.
template <class N, class Slope>
void reduction(const char* name, Slope slope) {
  Rule rule;
  rule.save = [slope](Local& l) { l.first = {slope(node<N>(l), l, node_axes(node<N>(l), l))}; };
  rule.push = [](Local& l, const Tangents& dx) { return reduction_push(l, node_axes(node<N>(l), l), dx); };
  rule.pull = [](Local& l, const Tangents& dgy) { return reduction_pull(l, node_axes(node<N>(l), l), dgy); };
  add_rule(name, std::move(rule));
}

// bend(node, local, axes, gy, dx) -> dgx, for the first output; gy has the kept shape, dx the dtype of the
// result.
template <class N, class Slope, class Bend>
void reduction(const char* name, Slope slope, Bend bend) {
  reduction<N>(name, slope);
  Rule rule = *find_rule(name);
  rule.curve = [bend](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) -> Tangents {
    if (!gy[0].defined()) return Tangents(1);
    const Axes a = node_axes(node<N>(l), l);
    return {bend(node<N>(l), l, a, gy[0].reshape(a.kept), cast(dx[0], dtype_of(l)))};
  };
  add_rule(name, std::move(rule));
}

// Rules that run along one axis: running sums and products, sorting.
void scans();

}  // namespace hesse::rules
