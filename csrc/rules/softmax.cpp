// Softmax and its logarithm along one axis, p = softmax(x):
//
//     softmax      push, pull  J t = p (t - sum(p t)), symmetric
//                  curve       h dx - h sum(p dx) - p sum(h dx)            with h = J gy
//     log_softmax  push        dx - sum(p dx)
//                  pull        dgy - p sum(dgy)
//                  curve       -q (dx - sum(p dx))                         with q = p sum(gy)
#include "reads.h"
#include "reduction.h"

namespace hesse::rules {

namespace {

// The axis; of _masked_softmax, if it was given none, the last one.
template <class N>
Axes softmax_axis(Local& l) {
  N& n = node<N>(l);
  if constexpr (requires { n.dim.has_value(); }) {
    return axes_of(l.in_shape[0], {n.dim.value_or(-1)});
  } else {
    return node_axes(n, l);
  }
}

// sum(w t), spread over the axis again.
Tangent met(const Tangent& t, const Tensor& w, const Axes& a) { return spread(total(scale(t, w), a), a); }

Tangent jacobian(const Tangent& t, const Tensor& p, const Axes& a) {
  return scale(minus(t, met(t, p, a)), p);
}

// Where all of x is -inf, p is NaN. Such rows go through the sums as zeros and become NaN again as a whole,
// by a factor: what selects (the masked_fill before a softmax) can end it, as it does in PyTorch's backward.
// On other devices than the CPU, where to look would be to wait, NaN goes through the sums.
void save_probabilities(Local& l, const Tensor& p, const Axes& a) {
  l.saved = {p};
  if (!readable(p)) return;
  const Tensor lost = p.isnan();
  if (!holds(lost.any())) return;
  const Tensor row = lost.any(a.gone, /*keepdim=*/true);
  l.saved = {p.masked_fill(lost, 0), at::zeros_like(row, p.options()).masked_fill(row, NAN) + 1};
}

Tangent spoiled(Tangent t, const Local& l) {
  if (l.saved.size() < 2) return t;
  t = scale(std::move(t), l.saved[1]);
  for (Term& term : t.terms) term.spoiled = true;
  return t;
}

template <class N>
void softmax_of(const char* name) {
  Rule rule;
  rule.save = [](Local& l) { save_probabilities(l, l.unpack(node<N>(l).result_), softmax_axis<N>(l)); };
  rule.push = [](Local& l, const Tangents& dx) -> Tangents {
    return {spoiled(jacobian(cast(dx[0], dtype_of(l)), l.saved[0], softmax_axis<N>(l)), l)};
  };
  rule.pull = [](Local& l, const Tangents& dgy) -> Tangents {
    return {spoiled(jacobian(dgy[0], l.saved[0], softmax_axis<N>(l)), l)};
  };
  rule.curve = [](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) -> Tangents {
    const Axes a = softmax_axis<N>(l);
    const Tensor& p = l.saved[0];
    if (l.bent.empty()) l.bent = {(gy[0] - (gy[0] * p).sum(a.gone, true)) * p};
    const Tensor& h = l.bent[0];
    const Tangent t = cast(dx[0], dtype_of(l));
    return {spoiled(minus(scale(minus(t, met(t, p, a)), h), scale(met(t, h, a), p)), l)};
  };
  add_rule(name, std::move(rule));
}

void log_softmax() {
  using N = gen::LogSoftmaxBackward0;
  Rule rule;
  rule.save = [](Local& l) { save_probabilities(l, l.unpack(node<N>(l).result_).exp(), softmax_axis<N>(l)); };
  rule.push = [](Local& l, const Tangents& dx) -> Tangents {
    const Tangent t = cast(dx[0], dtype_of(l));
    return {spoiled(minus(t, met(t, l.saved[0], softmax_axis<N>(l))), l)};
  };
  rule.pull = [](Local& l, const Tangents& dgy) -> Tangents {
    const Axes a = softmax_axis<N>(l);
    return {spoiled(minus(dgy[0], scale(spread(total(dgy[0], a), a), l.saved[0])), l)};
  };
  rule.curve = [](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) -> Tangents {
    const Axes a = softmax_axis<N>(l);
    if (l.bent.empty()) l.bent = {gy[0].sum(a.gone, true) * l.saved[0]};
    const Tangent t = cast(dx[0], dtype_of(l));
    return {spoiled(scale(scale(minus(t, met(t, l.saved[0], a)), l.bent[0]), -1.0), l)};
  };
  add_rule("LogSoftmaxBackward0", std::move(rule));
}

// ---- the backwards: nodes of their own where a gradient was differentiated, functions of what came back, g,
// and of y

// Of softmax, z = y (g - sum(y g)). With the cotangent h, s = sum(y g), c = sum(h y):
//
//     push   dz  = y (dg - sum(y dg)) + (g - s) dy - y sum(g dy)
//     pull   dgg = y (dgz - sum(y dgz)),     dgy = (g - s) dgz - g sum(y dgz)
//     curve  dgg = (h - c) dy - y sum(h dy), dgy = (h - c) dg - h sum(y dg) - h sum(g dy) - g sum(h dy)
void softmax_backward() {
  using N = gen::SoftmaxBackwardDataBackward0;
  auto axis = [](Local& l) { return axes_of(l.out_shape[0], {node<N>(l).dim}); };
  Rule rule;
  rule.save = [axis](Local& l) {  // y, g, g - s
    const Tensor g = operand(l, node<N>(l).grad_output_), y = operand(l, node<N>(l).output_);
    l.saved = {y, g, g - (y * g).sum(axis(l).gone, true)};
  };
  rule.push = [axis](Local& l, const Tangents& dx) -> Tangents {
    const Axes a = axis(l);
    const Tensor &y = l.saved[0], &g = l.saved[1], &rest = l.saved[2];
    Tangent dz;
    if (!dx[0].zero()) add_to(dz, jacobian(cast(dx[0], dtype_of(l)), y, a));
    if (!dx[1].zero()) {
      const Tangent t = cast(dx[1], dtype_of(l));
      add_to(dz, minus(scale(t, rest), scale(met(t, g, a), y)));
    }
    return {std::move(dz)};
  };
  rule.pull = [axis](Local& l, const Tangents& dgz) {
    const Axes a = axis(l);
    const Tensor &y = l.saved[0], &g = l.saved[1], &rest = l.saved[2];
    Tangents dgx(2);
    if (l.wanted[0]) dgx[0] = jacobian(dgz[0], y, a);
    if (l.wanted[1]) dgx[1] = minus(scale(dgz[0], rest), scale(met(dgz[0], y, a), g));
    return dgx;
  };
  rule.curve = [axis](Local& l, const std::vector<Tensor>& gz, const Tangents& dx) {
    const Axes a = axis(l);
    const Tensor &y = l.saved[0], &g = l.saved[1], &h = gz[0];
    if (l.bent.empty()) l.bent = {h - (h * y).sum(a.gone, true)};
    const Tensor& rest = l.bent[0];
    Tangents dgx(2);
    if (!dx[1].zero()) {
      const Tangent t = cast(dx[1], dtype_of(l)), h_met = met(t, h, a);
      if (l.wanted[0]) dgx[0] = minus(scale(t, rest), scale(h_met, y));
      if (l.wanted[1]) dgx[1] = minus(scale(scale(met(t, g, a), h), -1.0), scale(h_met, g));
    }
    if (!dx[0].zero() && l.wanted[1]) {
      const Tangent t = cast(dx[0], dtype_of(l));
      add_to(dgx[1], minus(scale(t, rest), scale(met(t, y, a), h)));
    }
    return dgx;
  };
  add_rule("SoftmaxBackwardDataBackward0", std::move(rule));
}

// Of its logarithm, z = g - e sum(g), e = exp(y). With the cotangent h, s = sum(g), c = sum(h e):
//
//     push   dz  = dg - e sum(dg) - e s dy
//     pull   dgg = dgz - sum(e dgz),    dgy = -e s dgz
//     curve  dgg = -sum(h e dy),        dgy = -h e (s dy + sum(dg))
void log_softmax_backward() {
  using N = gen::LogSoftmaxBackwardDataBackward0;
  auto axis = [](Local& l) { return axes_of(l.out_shape[0], {node<N>(l).dim}); };
  Rule rule;
  rule.save = [axis](Local& l) {  // e, e s
    const Tensor g = operand(l, node<N>(l).grad_output_), e = operand(l, node<N>(l).output_).exp();
    l.saved = {e, e * g.sum(axis(l).gone, true)};
  };
  rule.push = [axis](Local& l, const Tangents& dx) -> Tangents {
    const Axes a = axis(l);
    Tangent dz;
    if (!dx[0].zero()) {
      const Tangent t = cast(dx[0], dtype_of(l));
      add_to(dz, minus(t, scale(spread(total(t, a), a), l.saved[0])));
    }
    if (!dx[1].zero()) add_to(dz, scale(scale(cast(dx[1], dtype_of(l)), l.saved[1]), -1.0));
    return {std::move(dz)};
  };
  rule.pull = [axis](Local& l, const Tangents& dgz) {
    Tangents dgx(2);
    if (l.wanted[0]) dgx[0] = minus(dgz[0], met(dgz[0], l.saved[0], axis(l)));
    if (l.wanted[1]) dgx[1] = scale(scale(dgz[0], l.saved[1]), -1.0);
    return dgx;
  };
  rule.curve = [axis](Local& l, const std::vector<Tensor>& gz, const Tangents& dx) {
    const Axes a = axis(l);
    if (l.bent.empty()) l.bent = {gz[0] * l.saved[0], gz[0] * l.saved[1]};
    Tangents dgx(2);
    if (!dx[1].zero()) {
      const Tangent t = cast(dx[1], dtype_of(l));
      if (l.wanted[0]) dgx[0] = scale(met(t, l.bent[0], a), -1.0);
      if (l.wanted[1]) dgx[1] = scale(scale(t, l.bent[1]), -1.0);
    }
    if (!dx[0].zero() && l.wanted[1]) {
      const Tangent t = spread(total(cast(dx[0], dtype_of(l)), a), a);
      add_to(dgx[1], scale(scale(t, l.bent[0]), -1.0));
    }
    return dgx;
  };
  add_rule("LogSoftmaxBackwardDataBackward0", std::move(rule));
}

}  // namespace

void softmax() {
  softmax_of<gen::SoftmaxBackward0>("SoftmaxBackward0");
  softmax_of<gen::SafeSoftmaxBackward0>("SafeSoftmaxBackward0");
  softmax_of<gen::MaskedSoftmaxBackward0>("MaskedSoftmaxBackward0");
  log_softmax();
  softmax_backward();
  log_softmax_backward();
}

}  // namespace hesse::rules
