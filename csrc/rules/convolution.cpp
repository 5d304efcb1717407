// Convolution is bilinear: with U(x) the unfolded input (im2col), [B, C kh kw, L],
//
//     y[b, o, l] = sum_k w[o, k] U(x)[b, k, l]  (+ bias[o])
//
// so a tangent of the weights meets U(x) in a product that keeps its ties, and a tangent of the input is
// unfolded on rows. Grouped, transposed and 3-d convolutions go through the autograd rule.
#include "elementwise.h"

namespace hesse::rules {

namespace {

using N = gen::ConvolutionBackward0;

struct Sizes {
  Shape image;     // [B, C, H, W]
  Shape unfolded;  // [B, C kh kw, L]
  Shape weight;    // [O, C kh kw]
  Shape out;       // [B, O, L]
  Shape kernel, dilation, padding, stride;
};

int64_t of(const std::vector<c10::SymInt>& v, size_t i) { return v[v.size() == 1 ? 0 : i].expect_int(); }

// saved[0]: U(x) and saved[1]: w, made when first used; memo[0], memo[1]: x and w as the node saved them.
Sizes sizes(Local& l) {
  auto& n = node<N>(l);
  const auto x = l.memo[0].sizes(), w = l.memo[1].sizes();
  const bool line = x.size() == 3;
  Sizes s;
  s.image = {x[0], x[1], line ? 1 : x[2], x[line ? 2 : 3]};
  s.kernel = {line ? 1 : w[2], w[line ? 2 : 3]};
  s.dilation = {line ? 1 : of(n.dilation, 0), of(n.dilation, 1)};
  s.padding = {line ? 0 : of(n.padding, 0), of(n.padding, 1)};
  s.stride = {line ? 1 : of(n.stride, 0), of(n.stride, 1)};
  const int64_t k = w[1] * s.kernel[0] * s.kernel[1];
  const int64_t length = numel_of(l.out_shape[0]) / (x[0] * w[0]);
  s.unfolded = {x[0], k, length};
  s.weight = {w[0], k};
  s.out = {x[0], w[0], length};
  return s;
}

Shape rows_of(const Tensor& rows, const Shape& rest) {
  Shape shape{rows.size(0)};
  shape.append(rest.begin(), rest.end());
  return shape;
}

Tangent unfold(const Tangent& t, const Sizes& s) {
  return map_rows(t, s.unfolded, [&](const Tensor& rows) {
    Shape images = s.image;
    images[0] *= rows.size(0);
    return at::im2col(rows.reshape(images), s.kernel, s.dilation, s.padding, s.stride)
        .reshape(rows_of(rows, s.unfolded));
  });
}

Tangent fold(const Tangent& t, const Sizes& s, const Shape& shape) {
  Tangent image = map_rows(t, s.image, [&](const Tensor& rows) {
    Shape columns = s.unfolded;
    columns[0] *= rows.size(0);
    return at::col2im(rows.reshape(columns), {s.image[2], s.image[3]}, s.kernel, s.dilation, s.padding,
                      s.stride)
        .reshape(rows_of(rows, s.image));
  });
  return view(std::move(image), shape);
}

Tensor unfolded(Local& l, const Sizes& s) {
  if (!l.saved[0].defined()) {
    l.saved[0] = at::im2col(l.memo[0].reshape(s.image), s.kernel, s.dilation, s.padding, s.stride);
  }
  return l.saved[0];
}

// Is this one ours? Empty images and what the formula above does not cover are not.
bool covered(Local& l) {
  auto& n = node<N>(l);
  return !n.transposed && n.groups.expect_int() == 1 && !l.memo.empty() && l.memo[0].defined() &&
         l.memo[1].defined() && (l.memo[0].dim() == 3 || l.memo[0].dim() == 4) && l.memo[0].numel() > 0;
}

void save(Local& l) {
  auto& n = node<N>(l);
  l.memo = {l.unpack(n.input_), l.unpack(n.weight_)};
  if (!covered(l)) return;
  l.saved = {Tensor(), l.memo[1].reshape({l.memo[1].size(0), -1})};
}

Shape bias_shape(Local& l) {
  Shape shape(l.out_shape[0].size(), 1);
  shape[1] = l.out_shape[0][1];
  return shape;
}

Tangents push(Local& l, const Tangents& dx) {
  if (!covered(l)) return autograd_rule().push(l, dx);
  const Sizes s = sizes(l);
  Tangent dy;
  auto add = [&](Tangent t) {
    if (dy.K == 0) dy = zero_like(t, l.out_shape[0]);
    accumulate(dy, std::move(t));
  };
  if (!dx[0].zero()) add(view(einsum(unfold(dx[0], s), "bkl", l.saved[1], "ok", "bol"), l.out_shape[0]));
  if (!dx[1].zero()) {
    add(view(einsum(view(dx[1], s.weight), "ok", unfolded(l, s), "bkl", "bol"), l.out_shape[0]));
  }
  if (dx.size() > 2 && !dx[2].zero()) add(expand(view(dx[2], bias_shape(l)), l.out_shape[0]));
  return {std::move(dy)};
}

Tangents pull(Local& l, const Tangents& dgy) {
  if (!covered(l)) return autograd_rule().pull(l, dgy);
  const Sizes s = sizes(l);
  const Tangent g = view(dgy[0], s.out);
  Tangents dgx(l.inputs());
  if (l.wanted[0]) dgx[0] = fold(einsum(g, "bol", l.saved[1], "ok", "bkl"), s, l.in_shape[0]);
  if (l.wanted[1]) dgx[1] = view(einsum(g, "bol", unfolded(l, s), "bkl", "ok"), l.in_shape[1]);
  if (l.inputs() > 2 && l.wanted[2]) dgx[2] = view(sum_to(dgy[0], bias_shape(l)), l.in_shape[2]);
  return dgx;
}

Tangents curve(Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
  if (!covered(l)) return autograd_rule().curve(l, gy, dx);
  const Sizes s = sizes(l);
  const Tensor g = gy[0].reshape(s.out);
  Tangents dgx(l.inputs());
  if (l.wanted[0] && !dx[1].zero()) {
    dgx[0] = fold(einsum(view(dx[1], s.weight), "ok", g, "bol", "bkl"), s, l.in_shape[0]);
  }
  if (l.wanted[1] && !dx[0].zero()) {
    dgx[1] = view(einsum(unfold(dx[0], s), "bkl", g, "bol", "ok"), l.in_shape[1]);
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
  add_rule("ConvolutionBackward0", rule);
}

}  // namespace hesse::rules
