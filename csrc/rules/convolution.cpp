// Convolution, transposed or not, is bilinear in x [B, G, c, *space] and w, G groups of c channels to o. With
// U(x) the unfolded input, U(x)[b, g, c, k, l] the element of channel c that meets tap k of w for output l,
//
//     y[b, g, o, l] = sum_ck w[g, o, c, k] U(x)[b, g, c, k, l]  (+ bias[g, o])
//
// A tangent of w meets U(x) in a product that keeps its ties. A tangent of x is convolved with w along
// channels and space, the batch is carried. The transpose of a convolution in x is one itself, C' with the
// same w, between the same values in opposite roles; with U' its unfolding,
//
//     pull   dgx = C'(dgy, w)             dgw = sum_bl dgy U(x)
//     curve  dgx = sum_ok dw U'(gy)       dgw = sum_bs dx U'(gy)
#include "elementwise.h"
#include "ledger.h"

namespace hesse::rules {

namespace {

using N = gen::ConvolutionBackward0;

struct Conv {
  Shape from, to;                           // sizes of space before and after
  Shape kernel, stride, padding, dilation;  // per axis of space
  int64_t groups = 1;
  bool transposed = false;

  size_t rank() const { return from.size(); }
  int64_t reach(size_t i) const { return dilation[i] * (kernel[i] - 1); }
  int64_t taps() const { return numel_of(kernel); }
};

Conv transpose(Conv c) {
  std::swap(c.from, c.to);
  c.transposed = !c.transposed;
  return c;
}

Shape per_axis(const std::vector<c10::SymInt>& v, size_t rank) {
  Shape s;
  for (size_t i = 0; i < rank; ++i) s.push_back(v[v.size() == 1 ? 0 : i].expect_int());
  return s;
}

// saved: x, w; undefined where the other one is not active. memo: U(x); bent: U'(gy); made when first used.
const Tensor& x_of(const Local& l) { return l.saved[0]; }
const Tensor& w_of(const Local& l) { return l.saved[1]; }

Shape shape_of(const Local& l, size_t i) {
  return l.active[i] ? l.in_shape[i] : Shape(l.saved[i].sizes().begin(), l.saved[i].sizes().end());
}

void save(Local& l) {
  auto& n = node<N>(l);
  l.saved = {l.unpack(n.input_), l.unpack(n.weight_)};
}

Conv conv_of(Local& l) {
  auto& n = node<N>(l);
  const Shape x = shape_of(l, 0), w = shape_of(l, 1), &y = l.out_shape[0];
  const size_t rank = x.size() - 2;
  return {Shape(x.begin() + 2, x.end()), Shape(y.begin() + 2, y.end()),
          Shape(w.begin() + 2, w.end()), per_axis(n.stride, rank),
          per_axis(n.padding, rank),     per_axis(n.dilation, rank),
          n.groups.expect_int(),         n.transposed};
}

// [B, C, *space] with its channels in groups: [B, G, C / G, *space].
Shape grouped(const Shape& shape, const Conv& c) {
  Shape s{shape[0], c.groups, shape[1] / c.groups};
  s.append(shape.begin() + 2, shape.end());
  return s;
}

// The same with space flattened, for products.
Shape flat(const Shape& shape, const Conv& c) {
  return {shape[0], c.groups, shape[1] / c.groups, numel_of(Shape(shape.begin() + 2, shape.end()))};
}

// w as [G, o, c, k], of a transposed convolution [G, c, o, k].
Shape flat_weight(const Shape& w, const Conv& c) { return {c.groups, w[0] / c.groups, w[1], c.taps()}; }

const char* weight_axes(const Conv& c) { return c.transposed ? "gcok" : "gock"; }

Tensor pad_space(const Tensor& x, const Shape& before, const Shape& after) {
  Shape pads;
  for (size_t i = before.size(); i-- > 0;) pads.append({before[i], after[i]});
  return at::constant_pad_nd(x, pads);
}

// Zeros between the elements: an axis of n becomes one of n * stride.
Tensor spaced(Tensor x, const Shape& stride) {
  for (size_t i = 0; i < stride.size(); ++i) {
    if (stride[i] == 1) continue;
    const auto a = static_cast<int64_t>(i) + 2;
    Shape pads(2 * (x.dim() - a), 0);
    pads.back() = stride[i] - 1;  // of the last pair, which is for axis a + 1
    x = at::constant_pad_nd(x.unsqueeze(a + 1), pads).flatten(a, a + 1);
  }
  return x;
}

// U(x): [B, G, c, k, l].
Tensor unfolded(const Tensor& x, const Conv& c) {
  Shape before, after, step, flip;
  for (size_t i = 0; i < c.rank(); ++i) {
    // A transposed convolution is a plain one over spaced elements, its taps in reverse.
    const int64_t n = c.transposed ? c.from[i] * c.stride[i] : c.from[i];
    before.push_back(c.transposed ? c.reach(i) - c.padding[i] : c.padding[i]);
    step.push_back(c.transposed ? 1 : c.stride[i]);
    after.push_back((c.to[i] - 1) * step[i] + c.reach(i) + 1 - n - before[i]);
    if (c.transposed) flip.push_back(static_cast<int64_t>(i) + 2);
  }
  const Tensor padded = pad_space(c.transposed ? spaced(x, c.stride) : x, before, after).contiguous();
  Shape size{x.size(0), x.size(1)}, stride{padded.stride(0), padded.stride(1)};
  for (size_t i = 0; i < c.rank(); ++i) {
    size.push_back(c.kernel[i]);
    stride.push_back(c.dilation[i] * padded.stride(static_cast<int64_t>(i) + 2));
  }
  for (size_t i = 0; i < c.rank(); ++i) {
    size.push_back(c.to[i]);
    stride.push_back(step[i] * padded.stride(static_cast<int64_t>(i) + 2));
  }
  const Tensor windows = padded.as_strided(size, stride, padded.storage_offset());
  return (flip.empty() ? windows : windows.flip(flip))
      .reshape({x.size(0), c.groups, x.size(1) / c.groups, c.taps(), numel_of(c.to)});
}

const Tensor& unfolded_x(Local& l, const Conv& c) {
  if (l.memo.empty()) l.memo = {unfolded(x_of(l), c)};
  return l.memo[0];
}

const Tensor& unfolded_gy(Local& l, const Conv& c, const Tensor& gy) {
  if (l.bent.empty()) l.bent = {unfolded(gy, transpose(c))};
  return l.bent[0];
}

// A transposed convolution of stride 1 as the plain one that it is: taps in reverse, channels in opposite
// roles. Libraries are much faster at it. Left alone where its padding would
// not be symmetric, or negative.
void make_plain(Conv& c, Tensor& w, int64_t groups) {
  if (!c.transposed) return;
  Conv plain = c;
  plain.transposed = false;
  Shape taps;
  for (size_t i = 0; i < c.rank(); ++i) {
    plain.padding[i] = c.reach(i) - c.padding[i];
    const int64_t out = c.from[i] + 2 * plain.padding[i] - c.reach(i);
    if (c.stride[i] != 1 || plain.padding[i] < 0 || out != c.to[i]) return;
    taps.push_back(static_cast<int64_t>(i) + 2);
  }
  w = w.unflatten(0, {groups, -1}).transpose(1, 2).flatten(0, 1).flip(taps);
  c = plain;
}

// Images [n, G c, *from] -> [n, G o, *to].
Tensor convolved(const Tensor& x, Tensor w, Conv c, int64_t groups) {
  make_plain(c, w, groups);
  Shape extra(c.rank(), 0);
  for (size_t i = 0; c.transposed && i < c.rank(); ++i) {
    extra[i] = c.to[i] - ((c.from[i] - 1) * c.stride[i] - 2 * c.padding[i] + c.reach(i) + 1);
  }
  Tensor y = at::convolution(x, w, {}, c.stride, c.padding, c.dilation, c.transposed, extra, groups);
  // What a transposed convolution adds to its output may make room for more windows than it came from.
  for (size_t i = 0; i < c.rank(); ++i) y = y.narrow(static_cast<int64_t>(i) + 2, 0, c.to[i]);
  return y;
}

// The tangent of C's input, convolved: [B, G c, *from] -> [B, G o, *to].
Tangent convolve(const Tangent& t, const Tensor& w, const Conv& c, const Shape& out) {
  const Shape y = grouped(out, c);
  Shape axes, weight{1, c.groups, w.size(0) / c.groups, w.size(1)};
  for (int64_t a = 2; a < static_cast<int64_t>(y.size()); ++a) axes.push_back(a);
  weight.append(c.kernel.begin(), c.kernel.end());
  const bool seeded = t.K > 1;
  auto f = [&](const Tensor& rows, const Tensor& known) {
    const int64_t R = rows.size(0), D = rows.size(1);
    Shape images{R, D * rows.size(2)}, result{R, D};
    images.append(c.from.begin(), c.from.end());
    result.append(y.begin() + 2, y.end());
    if (seeded) {
      const int64_t windows = numel_of(c.transposed ? c.from : c.to);
      ledger().flops += 2 * R * D * rows.size(2) * y[2] * c.taps() * windows;
      ledger().gemms += 1;
    }
    return convolved(rows.reshape(images), known.flatten(0, 1), c, D).reshape(result);
  };
  return view(
      map_axes(view(t, grouped(t.shape, c)), axes, Shape(y.begin() + 2, y.end()), f, w.reshape(weight)), out);
}

// One direction has no ties to keep: the library takes it as it takes values, and nothing is unfolded. Not in
// a recorded sweep, as PyTorch cannot differentiate all of these calls twice more.
bool single(const Tangent& t) { return t.K == 1 && !c10::GradMode::is_enabled(); }

// What ATen's calls end in: stride, padding, dilation, transposed, output padding, groups.
template <class F>
auto with_geometry(Local& l, F f) {
  auto& n = node<N>(l);
  const Conv c = conv_of(l);
  return f(c.stride, c.padding, c.dilation, c.transposed, per_axis(n.output_padding, c.rank()), c.groups);
}

Tensor convolve_values(Local& l, const Tensor& x, const Tensor& w) {
  return with_geometry(l, [&](auto&&... geometry) { return at::convolution(x, w, {}, geometry...); });
}

// The gradient by x or by w, of which the one that is not asked for has to be there; the other's shape
// counts.
Tensor convolve_back(Local& l, const Tensor& gy, const Tensor& x, const Tensor& w, bool by_w) {
  auto there = [&](const Tensor& t, size_t i) {
    return t.defined() ? t : at::empty({1}, gy.options()).expand(shape_of(l, i));
  };
  auto [gx, gw, gb] = with_geometry(l, [&](auto&&... geometry) {
    return at::convolution_backward(gy, there(x, 0), there(w, 1), c10::nullopt, geometry...,
                                    {!by_w, by_w, false});
  });
  return by_w ? gw : gx;
}

Shape bias_shape(const Local& l) {
  Shape shape(l.out_shape[0].size(), 1);
  shape[1] = l.out_shape[0][1];
  return shape;
}

Tangents push(Local& l, const Tangents& dx) {
  Tangent dy;
  auto add = [&](Tangent t) {
    if (dy.K == 0) dy = zero_like(t, l.out_shape[0]);
    accumulate(dy, std::move(t));
  };
  if (!dx[0].zero()) add(convolve(dx[0], w_of(l), conv_of(l), l.out_shape[0]));
  if (!dx[1].zero() && single(dx[1])) {
    add(from_value(convolve_values(l, x_of(l), value(dx[1]))));
  } else if (!dx[1].zero()) {
    const Conv c = conv_of(l);
    const Tangent w = view(dx[1], flat_weight(dx[1].shape, c));
    add(view(einsum(w, weight_axes(c), unfolded_x(l, c), "bgckl", "bgol"), l.out_shape[0]));
  }
  if (!dx[2].zero()) add(expand(view(dx[2], bias_shape(l)), l.out_shape[0]));
  return {std::move(dy)};
}

Tangents pull(Local& l, const Tangents& dgy) {
  Tangents dgx(l.inputs());
  if (l.wanted[0]) dgx[0] = convolve(dgy[0], w_of(l), transpose(conv_of(l)), l.in_shape[0]);
  if (l.wanted[1] && single(dgy[0])) {
    dgx[1] = from_value(convolve_back(l, value(dgy[0]), x_of(l), w_of(l), /*by_w=*/true));
  } else if (l.wanted[1]) {
    const Conv c = conv_of(l);
    const Tangent g = view(dgy[0], flat(dgy[0].shape, c));
    dgx[1] = view(einsum(g, "bgol", unfolded_x(l, c), "bgckl", weight_axes(c)), l.in_shape[1]);
  }
  if (l.wanted[2]) dgx[2] = view(sum_to(dgy[0], bias_shape(l)), l.in_shape[2]);
  return dgx;
}

Tangents curve(Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
  Tangents dgx(l.inputs());
  if (l.wanted[0] && !dx[1].zero() && single(dx[1])) {
    dgx[0] = from_value(convolve_back(l, gy[0], x_of(l), value(dx[1]), /*by_w=*/false));
  } else if (l.wanted[0] && !dx[1].zero()) {
    const Conv c = conv_of(l);
    const Tangent w = view(dx[1], flat_weight(dx[1].shape, c));
    dgx[0] = view(einsum(w, weight_axes(c), unfolded_gy(l, c, gy[0]), "bgoks", "bgcs"), l.in_shape[0]);
  }
  if (l.wanted[1] && !dx[0].zero() && single(dx[0])) {
    dgx[1] = from_value(convolve_back(l, gy[0], value(dx[0]), w_of(l), /*by_w=*/true));
  } else if (l.wanted[1] && !dx[0].zero()) {
    const Conv c = conv_of(l);
    const Tangent x = view(dx[0], flat(dx[0].shape, c));
    dgx[1] = view(einsum(x, "bgcs", unfolded_gy(l, c, gy[0]), "bgoks", weight_axes(c)), l.in_shape[1]);
  }
  return dgx;
}

}  // namespace

void convolution() {
  Rule rule;
  rule.save = save;
  rule.push = push;
  rule.pull = pull;
  rule.curve = curve;
  rule.multiplies = true;
  add_rule("ConvolutionBackward0", rule);
}

}  // namespace hesse::rules
