// Ops that join several values into one or split one into several: each part is a strided view of the whole.
#include "elementwise.h"
#include "shapes.h"

namespace hesse::rules {

namespace {

// part(node, local, p) -> where part p lies in the whole.
template <class N, class G>
void split(const char* name, G part) {
  Rule rule;
  rule.push = [part](Local& l, const Tangents& dx) {
    Tangents dy;
    for (size_t p = 0; p < l.out_shape.size(); ++p) dy.push_back(take(dx[0], part(node<N>(l), l, p)));
    return dy;
  };
  rule.pull = [part](Local& l, const Tangents& dgy) -> Tangents {
    Tangent whole;
    for (size_t p = 0; p < dgy.size(); ++p) {
      if (dgy[p].zero()) continue;
      if (whole.K == 0) whole = zero_like(dgy[p], l.in_shape[0]);
      accumulate(whole, put(dgy[p], part(node<N>(l), l, p), l.in_shape[0]));
    }
    return {std::move(whole)};
  };
  add_rule(name, std::move(rule));
}

template <class N, class G>
void join(const char* name, G part) {
  Rule rule;
  rule.push = [part](Local& l, const Tangents& dx) -> Tangents {
    Tangent whole;
    for (size_t p = 0; p < dx.size(); ++p) {
      if (dx[p].zero()) continue;
      if (whole.K == 0) whole = zero_like(dx[p], l.out_shape[0]);
      accumulate(whole, put(cast(dx[p], whole.options.dtype().toScalarType()), part(node<N>(l), l, p),
                            l.out_shape[0]));
    }
    return {std::move(whole)};
  };
  rule.pull = [part](Local& l, const Tangents& dgy) {
    Tangents dgx(l.inputs());
    for (size_t p = 0; p < l.inputs(); ++p) {
      if (l.wanted[p]) dgx[p] = view(take(dgy[0], part(node<N>(l), l, p)), l.in_shape[p]);
    }
    return dgx;
  };
  add_rule(name, std::move(rule));
}

// Elements [start, start + length) of axis `dim`.
Geometry range(const Shape& whole, int64_t dim, int64_t start, int64_t length) {
  Geometry g{whole, row_major(whole), 0};
  g.offset = start * g.stride[dim];
  g.size[dim] = length;
  return g;
}

// Element `index` of axis `dim`, which goes.
Geometry element(const Shape& whole, int64_t dim, int64_t index) {
  Geometry g = range(whole, dim, index, 1);
  g.size.erase(g.size.begin() + dim);
  g.stride.erase(g.stride.begin() + dim);
  return g;
}

}  // namespace

void joins() {
  const auto even = [](auto& n, Local& l, size_t p) {
    const Shape& whole = l.in_shape[0];
    const int64_t dim = wrap(n.dim, whole), size = n.split_size.expect_int();
    const int64_t start = static_cast<int64_t>(p) * size;
    return range(whole, dim, start, std::min(size, whole[dim] - start));
  };
  const auto sized = [](auto& n, Local& l, size_t p) {
    const Shape& whole = l.in_shape[0];
    int64_t start = 0;
    for (size_t q = 0; q < p; ++q) start += n.split_sizes[q].expect_int();
    return range(whole, wrap(n.dim, whole), start, n.split_sizes[p].expect_int());
  };
  split<gen::SplitBackward0>("SplitBackward0", even);
  split<gen::UnsafeSplitBackward0>("UnsafeSplitBackward0", even);
  split<gen::SplitWithSizesBackward0>("SplitWithSizesBackward0", sized);
  split<gen::UnsafeSplitWithSizesBackward0>("UnsafeSplitWithSizesBackward0", sized);
  split<gen::UnbindBackward0>("UnbindBackward0", [](auto& n, Local& l, size_t p) {
    return element(l.in_shape[0], wrap(n.dim, l.in_shape[0]), static_cast<int64_t>(p));
  });

  join<gen::CatBackward0>("CatBackward0", [](auto& n, Local& l, size_t p) {
    const Shape& whole = l.out_shape[0];
    const int64_t dim = wrap(n.dim, whole);
    // An empty one-dimensional tensor joins anything and adds nothing.
    auto length = [&](size_t q) {
      const auto& sizes = n.tensors_args_sizes_symint[q];
      return sizes.size() == whole.size() ? sizes[dim].expect_int() : 0;
    };
    int64_t start = 0;
    for (size_t q = 0; q < p; ++q) start += length(q);
    return range(whole, dim, start, length(p));
  });
  join<gen::StackBackward0>("StackBackward0", [](auto& n, Local& l, size_t p) {
    return element(l.out_shape[0], wrap(n.dim, l.out_shape[0]), static_cast<int64_t>(p));
  });
}

}  // namespace hesse::rules
