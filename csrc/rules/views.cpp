// Shape ops. Nearly all are strided views of a contiguous value, so a row gives only the geometry: push takes
// it, pull puts it back. Reshapes keep flat indices and cost nothing at all.
#include "elementwise.h"
#include "shapes.h"

#include <algorithm>

namespace hesse::rules {

namespace {

Geometry whole(const Shape& shape) { return {shape, row_major(shape), 0}; }

// geometry(node, shape of the input) -> where the output's elements lie in it.
template <class N, class G>
void strided(const char* name, G geometry) {
  Rule rule;
  rule.push = [geometry](Local& l, const Tangents& dx) -> Tangents {
    return {take(dx[0], geometry(node<N>(l), l.in_shape[0]))};
  };
  rule.pull = [geometry](Local& l, const Tangents& dgy) -> Tangents {
    return {put(dgy[0], geometry(node<N>(l), l.in_shape[0]), l.in_shape[0])};
  };
  rule.reindexes = true;
  add_rule(name, std::move(rule));
}

// The same flat values under another shape (a copy is one too).
void reshape(const char* name) {
  Rule rule;
  rule.push = [](Local& l, const Tangents& dx) -> Tangents { return {view(dx[0], l.out_shape[0])}; };
  rule.pull = [](Local& l, const Tangents& dgy) -> Tangents { return {view(dgy[0], l.in_shape[0])}; };
  rule.reindexes = true;
  add_rule(name, std::move(rule));
}

// A linear map that reads the value in blocks: out = sum over the blocks of put(take(x, from), to).
struct Block {
  Geometry from, to;
};
template <class N, class B>
void blocks(const char* name, B blocks_of) {
  Rule rule;
  auto move = [](const Tangent& t, const Shape& shape, const std::vector<Block>& list, bool back) {
    Tangent out = zero_like(t, shape);
    for (const Block& b : list)
      accumulate(out, put(take(t, back ? b.to : b.from), back ? b.from : b.to, shape));
    return out;
  };
  rule.push = [blocks_of, move](Local& l, const Tangents& dx) -> Tangents {
    return {move(dx[0], l.out_shape[0], blocks_of(node<N>(l), l), false)};
  };
  rule.pull = [blocks_of, move](Local& l, const Tangents& dgy) -> Tangents {
    return {move(dgy[0], l.in_shape[0], blocks_of(node<N>(l), l), true)};
  };
  add_rule(name, std::move(rule));
}

// out = x where mask, else 0; the mask is made once.
template <class N, class M>
void masked(const char* name, M mask_of) {
  Rule rule;
  auto apply = [mask_of](Local& l, const Tangent& t) -> Tangents {
    if (l.memo.empty())
      l.memo = {mask_of(node<N>(l), at::ones(l.in_shape[0], l.out_options[0].requires_grad(std::nullopt)))};
    return {select(t, l.memo[0])};
  };
  rule.push = [apply](Local& l, const Tangents& dx) { return apply(l, dx[0]); };
  rule.pull = [apply](Local& l, const Tangents& dgy) { return apply(l, dgy[0]); };
  add_rule(name, std::move(rule));
}

Geometry swapped(const Shape& shape, int64_t a, int64_t b) {
  Geometry g = whole(shape);
  if (shape.empty()) return g;
  a = wrap(a, shape);
  b = wrap(b, shape);
  std::swap(g.size[a], g.size[b]);
  std::swap(g.stride[a], g.stride[b]);
  return g;
}

Geometry sliced(const Shape& shape, int64_t dim, int64_t start, int64_t length, int64_t step) {
  Geometry g = whole(shape);
  g.offset = start * g.stride[dim];
  g.size[dim] = length;
  g.stride[dim] *= step;
  return g;
}

}  // namespace

void views() {
  // ---- the same flat values -------------------------------------------------------------------------------
  for (const char* name :
       {"ViewBackward0", "UnsafeViewBackward0", "ReshapeAliasBackward0", "ReshapeCopyBackward0",
        "ViewBackward0_copy", "ReshapeAliasBackward0_copy", "SqueezeBackward0", "SqueezeBackward1",
        "SqueezeBackward2", "SqueezeBackward3", "SqueezeBackward4", "SqueezeBackward5", "UnsqueezeBackward0",
        "UnsqueezeBackward1", "CloneBackward0", "ToCopyBackward0", "AliasBackward0", "LiftFreshBackward0"}) {
    reshape(name);
  }

  // ---- strided views -------------------------------------------------------------------------------------
  strided<gen::PermuteBackward0>("PermuteBackward0", [](auto& n, const Shape& shape) {
    const Geometry g = whole(shape);
    Geometry p;
    for (int64_t d : n.dims) {
      p.size.push_back(g.size[wrap(d, shape)]);
      p.stride.push_back(g.stride[wrap(d, shape)]);
    }
    return p;
  });
  strided<gen::TransposeBackward0>(
      "TransposeBackward0", [](auto& n, const Shape& shape) { return swapped(shape, n.dim0, n.dim1); });
  strided<gen::TransposeBackward1>(
      "TransposeBackward1", [](auto& n, const Shape& shape) { return swapped(shape, n.dim0, n.dim1); });
  for (const char* name : {"TBackward0", "TBackward1"}) {
    strided<Node>(name, [](auto&, const Shape& shape) {
      return shape.size() < 2 ? whole(shape) : swapped(shape, 0, 1);
    });
  }
  strided<gen::SelectBackward0>("SelectBackward0", [](auto& n, const Shape& shape) {
    const int64_t dim = wrap(n.dim, shape);
    const int64_t index = n.index.expect_int();
    Geometry g = sliced(shape, dim, index < 0 ? index + shape[dim] : index, 1, 1);
    g.size.erase(g.size.begin() + dim);
    g.stride.erase(g.stride.begin() + dim);
    return g;
  });
  strided<gen::SliceBackward0>("SliceBackward0", [](auto& n, const Shape& shape) {
    const int64_t dim = wrap(n.dim, shape), size = shape[dim], step = n.step.expect_int();
    auto clip = [size](int64_t i) { return std::clamp<int64_t>(i < 0 ? i + size : i, 0, size); };
    const int64_t start = clip(n.start ? n.start->expect_int() : 0);
    const int64_t end = std::max(start, clip(n.end ? n.end->expect_int() : size));
    return sliced(shape, dim, start, (end - start + step - 1) / step, step);
  });
  strided<gen::UnfoldBackward0>("UnfoldBackward0", [](auto& n, const Shape& shape) {
    if (shape.empty()) return Geometry{{n.size}, {1}, 0};
    const int64_t dim = wrap(n.dimension, shape);
    Geometry g = whole(shape);
    g.size.push_back(n.size);
    g.stride.push_back(g.stride[dim]);
    g.size[dim] = (shape[dim] - n.size) / n.step + 1;
    g.stride[dim] *= n.step;
    return g;
  });
  strided<gen::DiagonalBackward0>("DiagonalBackward0", [](auto& n, const Shape& shape) {
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
  });

  {
    Rule rule;
    rule.push = [](Local& l, const Tangents& dx) -> Tangents { return {expand(dx[0], l.out_shape[0])}; };
    rule.pull = [](Local& l, const Tangents& dgy) -> Tangents { return {sum_to(dgy[0], l.in_shape[0])}; };
    add_rule("ExpandBackward0", rule);
    add_rule("ExpandBackward0_copy", rule);
  }
  {
    // as_strided speaks of the input's memory: a view of its values only where the two agree.
    auto geometry = [](Local& l) -> std::optional<Geometry> {
      auto& n = node<gen::AsStridedBackward0>(l);
      const Shape stride = ints(n.self_geometry.sym_strides()), size = ints(n.self_geometry.sym_sizes());
      if (!is_row_major(size, stride)) return std::nullopt;
      const int64_t from = n.self_geometry.sym_storage_offset().expect_int();
      const int64_t offset = n.storage_offset ? n.storage_offset->expect_int() - from : 0;
      Geometry g{ints(n.size), ints(n.stride), offset};
      int64_t last = g.offset;
      for (size_t d = 0; d < g.size.size(); ++d) last += (g.size[d] - 1) * g.stride[d];
      if (g.offset < 0 || last >= numel_of(size)) return std::nullopt;
      return g;
    };
    Rule rule;
    rule.covers = [geometry](Local& l) { return geometry(l).has_value(); };
    rule.push = [geometry](Local& l, const Tangents& dx) -> Tangents { return {take(dx[0], *geometry(l))}; };
    rule.pull = [geometry](Local& l, const Tangents& dgy) -> Tangents {
      return {put(dgy[0], *geometry(l), l.in_shape[0])};
    };
    add_rule("AsStridedBackward0", rule);
  }

  // ---- blocks moved about ------------------------------------------------------------------------------
  blocks<gen::ConstantPadNdBackward0>("ConstantPadNdBackward0", [](auto& n, Local& l) {
    const Shape pad = ints(n.pad), &in = l.in_shape[0], &out = l.out_shape[0];
    Block b{whole(in), whole(out)};
    for (size_t i = 0; i < pad.size() / 2; ++i) {
      const size_t d = in.size() - 1 - i;
      const int64_t before = pad[2 * i], after = pad[2 * i + 1];
      const int64_t length = in[d] + std::min<int64_t>(before, 0) + std::min<int64_t>(after, 0);
      b.from.offset += std::max<int64_t>(-before, 0) * b.from.stride[d];
      b.to.offset += std::max<int64_t>(before, 0) * b.to.stride[d];
      b.from.size[d] = b.to.size[d] = std::max<int64_t>(length, 0);
    }
    return numel_of(b.from.size) > 0 ? std::vector<Block>{b} : std::vector<Block>{};
  });
  blocks<gen::RollBackward0>("RollBackward0", [](auto& n, Local& l) {
    // Without dims the value is rolled flat.
    const Shape shape = n.dims.empty() ? Shape{numel_of(l.in_shape[0])} : l.in_shape[0];
    const Shape shifts = ints(n.shifts);
    std::vector<Block> list{{whole(l.in_shape[0]), whole(l.in_shape[0])}};
    if (n.dims.empty()) list = {{whole(shape), whole(shape)}};
    for (size_t i = 0; i < shifts.size(); ++i) {
      const int64_t d = n.dims.empty() ? 0 : wrap(n.dims[i], shape);
      const int64_t size = shape[d];
      std::vector<Block> next;
      for (const Block& b : list) {
        // Position p of the destination moves to (p + shift) mod size; a block may be cut in two.
        const int64_t at = (b.to.offset / b.to.stride[d]) % size;
        const int64_t begin = ((at + shifts[i]) % size + size) % size;
        const int64_t first = std::min(b.to.size[d], size - begin);
        auto part = [&](int64_t skip, int64_t length, int64_t place) {
          Block p = b;
          p.from.offset += skip * p.from.stride[d];
          p.to.offset += (place - at) * p.to.stride[d];
          p.from.size[d] = p.to.size[d] = length;
          if (length > 0) next.push_back(p);
        };
        part(0, first, begin);
        part(first, b.to.size[d] - first, 0);
      }
      list = std::move(next);
    }
    return list;
  });

  {
    // repeat: every axis s becomes (r, s), r of them broadcast.
    auto factored = [](Local& l) {
      const Shape repeats = ints(node<gen::RepeatBackward0>(l).repeats);
      const size_t lead = repeats.size() - l.in_shape[0].size();
      std::pair<Shape, Shape> s;  // [1, s, ...] and [r, s, ...]
      for (size_t d = 0; d < repeats.size(); ++d) {
        const int64_t size = d < lead ? 1 : l.in_shape[0][d - lead];
        s.first.append({1, size});
        s.second.append({repeats[d], size});
      }
      return s;
    };
    Rule rule;
    rule.push = [factored](Local& l, const Tangents& dx) -> Tangents {
      const auto [from, to] = factored(l);
      return {view(expand(view(dx[0], from), to), l.out_shape[0])};
    };
    rule.pull = [factored](Local& l, const Tangents& dgy) -> Tangents {
      const auto [from, to] = factored(l);
      return {view(sum_to(view(dgy[0], to), from), l.in_shape[0])};
    };
    add_rule("RepeatBackward0", rule);
  }

  // ---- no strides express it ---------------------------------------------------------------------------
  masked<gen::TrilBackward0>(
      "TrilBackward0", [](auto& n, const Tensor& ones) { return at::tril(ones, n.diagonal.expect_int()); });
  masked<gen::TriuBackward0>(
      "TriuBackward0", [](auto& n, const Tensor& ones) { return at::triu(ones, n.diagonal.expect_int()); });
  {
    Rule rule;
    auto flip = [](Local& l, const Tangent& t) -> Tangents {
      const Shape& shape = l.in_shape[0];
      std::vector<bool> flipped(shape.size(), false);
      for (int64_t d : node<gen::FlipBackward0>(l).dims) {
        if (!shape.empty()) flipped[wrap(d, shape)] = true;
      }
      Shape axes, sizes, dims;
      for (size_t a = 0; a < shape.size(); ++a) {
        if (!flipped[a]) continue;
        dims.push_back(static_cast<int64_t>(axes.size()) + 2);
        axes.push_back(static_cast<int64_t>(a));
        sizes.push_back(shape[a]);
      }
      return {
          map_axes(t, axes, sizes, [&](const Tensor& rows, const Tensor&) { return at::flip(rows, dims); })};
    };
    rule.push = [flip](Local& l, const Tangents& dx) { return flip(l, dx[0]); };
    rule.pull = [flip](Local& l, const Tangents& dgy) { return flip(l, dgy[0]); };
    add_rule("FlipBackward0", rule);
  }
}

}  // namespace hesse::rules
