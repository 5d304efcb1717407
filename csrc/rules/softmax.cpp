// Softmax and its logarithm along one axis, p = softmax(x):
//
//     softmax      push, pull  J t = p (t - sum(p t)), symmetric
//                  curve       h dx - h sum(p dx) - p sum(h dx)            with h = J gy
//     log_softmax  push        dx - sum(p dx)
//                  pull        dgy - p sum(dgy)
//                  curve       -q (dx - sum(p dx))                         with q = p sum(gy)
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
  if (!p.is_cpu()) return;
  const Tensor lost = p.isnan();
  if (!lost.any().item<bool>()) return;
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
    if (l.memo.empty()) l.memo = {(gy[0] - (gy[0] * p).sum(a.gone, true)) * p};
    const Tensor& h = l.memo[0];
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
    if (l.memo.empty()) l.memo = {gy[0].sum(a.gone, true) * l.saved[0]};
    const Tangent t = cast(dx[0], dtype_of(l));
    return {spoiled(scale(scale(minus(t, met(t, l.saved[0], a)), l.memo[0]), -1.0), l)};
  };
  add_rule("LogSoftmaxBackward0", std::move(rule));
}

}  // namespace

void softmax() {
  softmax_of<gen::SoftmaxBackward0>("SoftmaxBackward0");
  softmax_of<gen::SafeSoftmaxBackward0>("SafeSoftmaxBackward0");
  softmax_of<gen::MaskedSoftmaxBackward0>("MaskedSoftmaxBackward0");
  log_softmax();
}

}  // namespace hesse::rules
