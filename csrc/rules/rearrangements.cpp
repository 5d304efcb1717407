// Elements moved about in ways that one strided view does not express: axes split and permuted, turned round,
// or mirrored and repeated beyond their ends.
#include "assignments.h"
#include "factors.h"
#include "geometries.h"
#include "picks.h"
#include "reads.h"

#include <cstdlib>

namespace hesse::rules {

namespace {

// ---- axes split and permuted --------------------------------------------------------------------------

// side(node, x's shape) -> x's axes, split and permuted, as those of y.
template <class N, class F>
void rearranged(const char* name, F side) {
  Rule rule;
  rule.push = [side](Local& l, const Tangents& dx) -> Tangents {
    const Side s = side(node<N>(l), l.in_shape[0]);
    return {view(take(view(dx[0], s.grouped), s.part), l.out_shape[0])};
  };
  rule.pull = [side](Local& l, const Tangents& dgy) -> Tangents {
    const Side s = side(node<N>(l), l.in_shape[0]);
    return {view(put(view(dgy[0], s.part.size), s.part, s.grouped), l.in_shape[0])};
  };
  rule.reindexes = true;
  add_rule(name, std::move(rule));
}

Side split(const Shape& shape, const Shape& groups, c10::IntArrayRef order) {
  Side s(shape, groups);
  s.permute(order);
  return s;
}

// The product of all axes but the last `n`.
int64_t leading(const Shape& shape, size_t n) {
  return numel_of(c10::IntArrayRef(shape).slice(0, shape.size() - n));
}

// ---- turned round -------------------------------------------------------------------------------------

Tangent flip(const Tangent& t, const std::vector<bool>& flipped) {
  Shape axes, sizes, dims;
  for (size_t a = 0; a < flipped.size(); ++a) {
    if (!flipped[a]) continue;
    dims.push_back(static_cast<int64_t>(axes.size()) + 2);
    axes.push_back(static_cast<int64_t>(a));
    sizes.push_back(t.shape[a]);
  }
  if (axes.empty()) return t;
  return map_axes(t, axes, sizes, [&](const Tensor& rows, const Tensor&) { return at::flip(rows, dims); });
}

void flips() {
  using N = gen::FlipBackward0;
  auto flipped = [](Local& l, const Tangent& t) -> Tangents {
    std::vector<bool> axes(t.shape.size(), false);
    for (int64_t d : node<N>(l).dims) {
      if (!axes.empty()) axes[wrap(d, t.shape)] = true;
    }
    return {flip(t, axes)};
  };
  Rule rule;
  rule.push = [flipped](Local& l, const Tangents& dx) { return flipped(l, dx[0]); };
  rule.pull = [flipped](Local& l, const Tangents& dgy) { return flipped(l, dgy[0]); };
  add_rule("FlipBackward0", rule);
}

void rotations() {
  using N = gen::Rot90Backward0;
  // By k quarters: a half turns both axes round, and a quarter one of them, which then swap.
  auto turned = [](Local& l, const Tangent& t, bool back) -> Tangents {
    auto& n = node<N>(l);
    const int64_t k = ((back ? -n.k : n.k) % 4 + 4) % 4;
    const int64_t a = wrap(n.dims[0], t.shape), b = wrap(n.dims[1], t.shape);
    std::vector<bool> axes(t.shape.size(), false);
    axes[a] = k == 2 || k == 3;
    axes[b] = k == 2 || k == 1;
    Tangent out = flip(t, axes);
    return {k % 2 == 0 ? out : take(out, swapped(out.shape, a, b))};
  };
  Rule rule;
  rule.push = [turned](Local& l, const Tangents& dx) { return turned(l, dx[0], false); };
  rule.pull = [turned](Local& l, const Tangents& dgy) { return turned(l, dgy[0], true); };
  add_rule("Rot90Backward0", rule);
}

// ---- padded with what is there ------------------------------------------------------------------------

// One axis: a few blocks, which keep ties along it, or else an index.
struct PaddedAxis {
  Shape in, out;
  std::vector<Block> blocks;
  std::optional<Picks> picks;
};
using Padding = std::vector<PaddedAxis>;

// The source of place i of an axis of n that begins at a negative one.
int64_t mirrored(int64_t i, int64_t n) { return (n - 1) - std::abs((n - 1) - std::abs(i)); }
int64_t nearest(int64_t i, int64_t n) { return std::clamp<int64_t>(i, 0, n - 1); }

// The list on a device, run by run.
Tensor counted(const std::vector<int64_t>& list, const at::TensorOptions& options) {
  const auto n = static_cast<int64_t>(list.size());
  std::vector<Tensor> runs;
  for (int64_t i = 0, end = 0; i < n; i = end) {
    const int64_t step = i + 1 < n ? list[i + 1] - list[i] : 1;
    end = i + 1;
    while (end < n && list[end] - list[end - 1] == step) ++end;
    runs.push_back(step == 0 ? at::full({end - i}, list[i], options)
                             : at::arange(list[i], list[i] + (end - i) * step, step, options));
  }
  return at::cat(runs);
}

PaddedAxis padded_axis(const Shape& in, int64_t dim, const std::vector<int64_t>& source, at::Device device) {
  constexpr size_t most = 9;
  const auto length = static_cast<int64_t>(source.size());
  PaddedAxis axis{in, in, {}, {}};
  axis.out[dim] = length;
  for (int64_t i = 0, end = 0; i < length; i = end) {  // runs that go on by 1, or by 0
    const int64_t step = i + 1 < length ? source[i + 1] - source[i] : 1;
    end = i + 1;
    while ((step == 0 || step == 1) && end < length && source[end] - source[end - 1] == step) ++end;
    Block b{sliced(in, dim, source[i], end - i, step == 0 ? 0 : 1), sliced(axis.out, dim, i, end - i)};
    axis.blocks.push_back(std::move(b));
  }
  if (axis.blocks.size() > most) {
    axis.picks = along_vector(in, dim, counted(source, at::TensorOptions(device).dtype(at::kLong)));
  }
  return axis;
}

template <class N>
void padded(const char* name, int64_t (*source)(int64_t i, int64_t n)) {
  Rule rule;
  rule.save = [source](Local& l) {
    const Shape pad = ints(node<N>(l).padding);
    Shape shape = l.in_shape[0];
    Padding axes;
    for (size_t i = 0; i < pad.size() / 2; ++i) {
      if (pad[2 * i] == 0 && pad[2 * i + 1] == 0) continue;
      const size_t dim = shape.size() - 1 - i;
      std::vector<int64_t> places;
      for (int64_t at = -pad[2 * i]; at < shape[dim] + pad[2 * i + 1]; ++at) {
        places.push_back(source(at, shape[dim]));
      }
      axes.push_back(padded_axis(shape, static_cast<int64_t>(dim), places, l.out_options[0].device()));
      shape = axes.back().out;
    }
    l.plan = std::make_shared<Padding>(std::move(axes));
  };
  rule.push = [](Local& l, const Tangents& dx) -> Tangents {
    Tangent t = dx[0];
    for (const PaddedAxis& a : plan<Padding>(l)) {
      t = a.picks ? pick(*a.picks, std::move(t)) : moved(t, a.out, a.blocks, false);
    }
    return {std::move(t)};
  };
  rule.pull = [](Local& l, const Tangents& dgy) -> Tangents {
    Tangent t = dgy[0];
    const auto& axes = plan<Padding>(l);
    for (auto a = axes.rbegin(); a != axes.rend(); ++a) {
      t = a->picks ? unpick(*a->picks, std::move(t)) : moved(t, a->in, a->blocks, true);
    }
    return {std::move(t)};
  };
  add_rule(name, std::move(rule));
}

}  // namespace

void rearrangements() {
  rearranged<gen::ChannelShuffleBackward0>("ChannelShuffleBackward0", [](auto& n, const Shape& x) {
    const int64_t groups = n.groups.expect_int();
    const int64_t rest = numel_of(c10::IntArrayRef(x).slice(2));
    return split(x, {x[0], groups, x[1] / groups, rest}, {0, 2, 1, 3});
  });
  rearranged<gen::PixelShuffleBackward0>("PixelShuffleBackward0", [](auto& n, const Shape& x) {
    const int64_t r = n.upscale_factor, h = x[x.size() - 2], w = x[x.size() - 1];
    return split(x, {leading(x, 2) / (r * r), r, r, h, w}, {0, 3, 1, 4, 2});
  });
  rearranged<gen::PixelUnshuffleBackward0>("PixelUnshuffleBackward0", [](auto& n, const Shape& x) {
    const int64_t r = n.downscale_factor, h = x[x.size() - 2], w = x[x.size() - 1];
    return split(x, {leading(x, 2), h / r, r, w / r, r}, {0, 2, 4, 1, 3});
  });
  flips();
  rotations();
  padded<gen::ReflectionPad1DBackward0>("ReflectionPad1DBackward0", mirrored);
  padded<gen::ReflectionPad2DBackward0>("ReflectionPad2DBackward0", mirrored);
  padded<gen::ReflectionPad3DBackward0>("ReflectionPad3DBackward0", mirrored);
  padded<gen::ReplicationPad1DBackward0>("ReplicationPad1DBackward0", nearest);
  padded<gen::ReplicationPad2DBackward0>("ReplicationPad2DBackward0", nearest);
  padded<gen::ReplicationPad3DBackward0>("ReplicationPad3DBackward0", nearest);
  elementwise_linear<gen::FrexpBackward0>("FrexpBackward0", [](auto& n, Local& l) {
    l.first[0] = l.unpack(n.exponent_).to(dtype_of(l)).exp2().reciprocal();
  });
}

}  // namespace hesse::rules
