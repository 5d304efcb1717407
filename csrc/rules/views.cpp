// Shape ops. Nearly all are strided views of a contiguous value, so a row gives only the geometry: push takes
// it, pull puts it back. Reshapes keep flat indices and cost nothing at all.
#include "assignments.h"
#include "elementwise.h"
#include "geometries.h"

namespace hesse::rules {

namespace {

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

// The view, and the copy that records the same of itself.
template <class N, class Copy, class G>
void strided_or_copied(const std::string& name, G geometry) {
  strided<N>(name.c_str(), geometry);
  strided<Copy>((name + "_copy").c_str(), geometry);
}

// The same flat values under another shape (a copy is one too).
void reshape(const char* name) {
  Rule rule;
  rule.push = [](Local& l, const Tangents& dx) -> Tangents { return {view(dx[0], l.out_shape[0])}; };
  rule.pull = [](Local& l, const Tangents& dgy) -> Tangents { return {view(dgy[0], l.in_shape[0])}; };
  rule.reindexes = true;
  add_rule(name, std::move(rule));
}

template <class N>
void strided_memory_of(const char* name) {
  Rule rule;
  rule.covers = [](Local& l) { return strided_memory(node<N>(l)).has_value(); };
  rule.push = [](Local& l, const Tangents& dx) -> Tangents {
    return {take(dx[0], *strided_memory(node<N>(l)))};
  };
  rule.pull = [](Local& l, const Tangents& dgy) -> Tangents {
    return {put(dgy[0], *strided_memory(node<N>(l)), l.in_shape[0])};
  };
  add_rule(name, std::move(rule));
}

template <class N, class B>
void blocks(const char* name, B blocks_of) {
  Rule rule;
  rule.push = [blocks_of](Local& l, const Tangents& dx) -> Tangents {
    return {moved(dx[0], l.out_shape[0], blocks_of(node<N>(l), l), false)};
  };
  rule.pull = [blocks_of](Local& l, const Tangents& dgy) -> Tangents {
    return {moved(dgy[0], l.in_shape[0], blocks_of(node<N>(l), l), true)};
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

}  // namespace

void views() {
  // ---- the same flat values -------------------------------------------------------------------------------
  for (const char* name : {"ViewBackward0",         "UnsafeViewBackward0",     "ReshapeAliasBackward0",
                           "ReshapeCopyBackward0",  "ViewBackward0_copy",      "ReshapeAliasBackward0_copy",
                           "SqueezeBackward0",      "SqueezeBackward1",        "SqueezeBackward2",
                           "SqueezeBackward3",      "SqueezeBackward4",        "SqueezeBackward5",
                           "UnsqueezeBackward0",    "UnsqueezeBackward1",      "CloneBackward0",
                           "ToCopyBackward0",       "AliasBackward0",          "LiftFreshBackward0",
                           "AliasBackward0_copy",   "LiftFreshBackward0_copy", "SqueezeBackward0_copy",
                           "SqueezeBackward1_copy", "SqueezeBackward2_copy",   "UnsqueezeBackward0_copy"}) {
    reshape(name);
  }

  // ---- strided views -------------------------------------------------------------------------------------
  strided_or_copied<gen::PermuteBackward0, gen::PermuteBackward0_copy>(
      "PermuteBackward0", [](auto& n, const Shape& shape) { return permuted(shape, n.dims); });
  const auto transposed = [](auto& n, const Shape& shape) { return swapped(shape, n.dim0, n.dim1); };
  strided_or_copied<gen::TransposeBackward0, gen::TransposeBackward0_copy>("TransposeBackward0", transposed);
  strided<gen::TransposeBackward1>("TransposeBackward1", transposed);
  for (const char* name : {"TBackward0", "TBackward0_copy", "TBackward1"}) {
    strided<Node>(name, [](auto&, const Shape& shape) {
      return shape.size() < 2 ? whole(shape) : swapped(shape, 0, 1);
    });
  }
  strided_or_copied<gen::SelectBackward0, gen::SelectBackward0_copy>(
      "SelectBackward0", [](auto& n, const Shape& shape) { return selected(n, shape); });
  strided_or_copied<gen::SliceBackward0, gen::SliceBackward0_copy>(
      "SliceBackward0", [](auto& n, const Shape& shape) { return sliced(n, shape); });
  since_saved<gen::NarrowCopyBackward0>([]<class N>(std::type_identity<N>) {
    strided<N>("NarrowCopyBackward0", [](auto& n, const Shape& shape) {
      const int64_t dim = wrap(n.dim, shape), start = n.start.expect_int();
      return sliced(shape, dim, start < 0 ? start + shape[dim] : start, n.length.expect_int());
    });
  });
  strided_or_copied<gen::UnfoldBackward0, gen::UnfoldBackward0_copy>(
      "UnfoldBackward0",
      [](auto& n, const Shape& shape) { return unfolded(shape, n.dimension, n.size, n.step); });
  strided_or_copied<gen::DiagonalBackward0, gen::DiagonalBackward0_copy>(
      "DiagonalBackward0", [](auto& n, const Shape& shape) { return diagonal(n, shape); });

  {
    Rule rule;
    rule.push = [](Local& l, const Tangents& dx) -> Tangents { return {expand(dx[0], l.out_shape[0])}; };
    rule.pull = [](Local& l, const Tangents& dgy) -> Tangents { return {sum_to(dgy[0], l.in_shape[0])}; };
    add_rule("ExpandBackward0", rule);
    add_rule("ExpandBackward0_copy", rule);
  }
  strided_memory_of<gen::AsStridedBackward0>("AsStridedBackward0");
  strided_memory_of<gen::AsStridedBackward0_copy>("AsStridedBackward0_copy");

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

  assignments();
  rearrangements();
}

}  // namespace hesse::rules
