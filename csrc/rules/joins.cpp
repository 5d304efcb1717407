// Ops that join several values into one or split one into several: each part is a strided view of the whole.
#include "elementwise.h"
#include "geometries.h"

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
      const Geometry g = part(node<N>(l), l, p);
      Tangent t = view(cast(dx[p], whole.options.dtype().toScalarType()), g.size);
      accumulate(whole, put(std::move(t), g, l.out_shape[0]));
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

}  // namespace

void joins() {
  const auto even = [](auto& n, Local& l, size_t p) {
    const Shape& whole = l.in_shape[0];
    const int64_t dim = wrap(n.dim, whole), size = n.split_size.expect_int();
    const int64_t start = static_cast<int64_t>(p) * size;
    return sliced(whole, dim, start, std::min(size, whole[dim] - start));
  };
  const auto sized = [](auto& n, Local& l, size_t p) {
    const Shape& whole = l.in_shape[0];
    int64_t start = 0;
    for (size_t q = 0; q < p; ++q) start += n.split_sizes[q].expect_int();
    return sliced(whole, wrap(n.dim, whole), start, n.split_sizes[p].expect_int());
  };
  const auto each = [](auto& n, Local& l, size_t p) {
    return element(l.in_shape[0], wrap(n.dim, l.in_shape[0]), static_cast<int64_t>(p));
  };
  split<gen::SplitBackward0>("SplitBackward0", even);
  split<gen::SplitBackward0_copy>("SplitBackward0_copy", even);
  split<gen::UnsafeSplitBackward0>("UnsafeSplitBackward0", even);
  split<gen::SplitWithSizesBackward0>("SplitWithSizesBackward0", sized);
  split<gen::SplitWithSizesBackward0_copy>("SplitWithSizesBackward0_copy", sized);
  split<gen::UnsafeSplitWithSizesBackward0>("UnsafeSplitWithSizesBackward0", sized);
  split<gen::UnbindBackward0>("UnbindBackward0", each);
  split<gen::UnbindBackward0_copy>("UnbindBackward0_copy", each);

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
    return sliced(whole, dim, start, length(p));
  });
  join<gen::StackBackward0>("StackBackward0", [](auto& n, Local& l, size_t p) {
    return element(l.out_shape[0], wrap(n.dim, l.out_shape[0]), static_cast<int64_t>(p));
  });
  join<gen::BlockDiagBackward0>("BlockDiagBackward0", [](auto& n, Local& l, size_t p) {
    // A vector is one row, a number one element.
    auto rows = [&](size_t q) {
      return n.tensors_args_sizes[q].size() == 2 ? n.tensors_args_sizes[q][0] : 1;
    };
    auto columns = [&](size_t q) {
      return n.tensors_args_sizes[q].empty() ? 1 : n.tensors_args_sizes[q].back();
    };
    Geometry g = whole(l.out_shape[0]);
    for (size_t q = 0; q < p; ++q) g.offset += rows(q) * g.stride[0] + columns(q) * g.stride[1];
    g.size = {rows(p), columns(p)};
    return g;
  });
}

}  // namespace hesse::rules
