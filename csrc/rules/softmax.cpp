// Softmax and its logarithm along one axis, p = softmax(x):
//
//     softmax      J t = p o (t - sum(p o t)), symmetric;  curve = dp o (gy - sum(gy o p)) - p o sum(gy o dp), dp = J dx
//     log_softmax  J t = t - sum(p o t),  J' t = t - p o sum(t);  curve = -sum(gy) o J_softmax dx
#include "factors.h"

#include <ATen/WrapDimUtils.h>

namespace hesse::rules {

namespace {

Tangent minus(Tangent a, Tangent b) {
  accumulate(a, scale(std::move(b), -1.0));
  return a;
}

template <class N>
int64_t axis(Local& l) {
  return at::maybe_wrap_dim(node<N>(l).dim, static_cast<int64_t>(l.in_shape[0].size()));
}

// The sum along the axis, spread over it again.
template <class N>
Tangent summed(Local& l, Tangent t) {
  if (l.in_shape[0].empty()) return t;
  return expand(sum(std::move(t), {axis<N>(l)}, true), l.in_shape[0]);
}

template <class N>
Tensor summed(Local& l, const Tensor& t) {
  return l.in_shape[0].empty() ? t : t.sum(axis<N>(l), true);
}

// The Jacobian of softmax.
template <class N>
Tangent jacobian(Local& l, const Tangent& t, const Tensor& p) {
  Tangent weighted = scale(t, p);
  Tangent mean = scale(summed<N>(l, weighted), p);
  return minus(std::move(weighted), std::move(mean));
}

}  // namespace

void softmax() {
  {
    using N = gen::SoftmaxBackward0;
    Rule rule;
    rule.save = [](Local& l) { l.saved = {l.unpack(node<N>(l).result_)}; };
    rule.push = [](Local& l, const Tangents& dx) -> Tangents {
      return {jacobian<N>(l, cast(dx[0], dtype_of(l)), l.saved[0])};
    };
    rule.pull = [](Local& l, const Tangents& dgy) -> Tangents { return {jacobian<N>(l, dgy[0], l.saved[0])}; };
    rule.curve = [](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) -> Tangents {
      const Tensor& p = l.saved[0];
      if (l.memo.empty()) l.memo = {gy[0] - summed<N>(l, gy[0] * p)};
      // With h = gy - sum(gy o p): sum(gy o dp) = sum(h o dp), because dp sums to zero.
      const Tangent dp = scale(jacobian<N>(l, cast(dx[0], dtype_of(l)), p), l.memo[0]);
      return {minus(dp, scale(summed<N>(l, dp), p))};
    };
    add_rule("SoftmaxBackward0", std::move(rule));
  }
  {
    using N = gen::LogSoftmaxBackward0;
    Rule rule;
    rule.save = [](Local& l) { l.saved = {l.unpack(node<N>(l).result_).exp()}; };
    rule.push = [](Local& l, const Tangents& dx) -> Tangents {
      const Tangent t = cast(dx[0], dtype_of(l));
      return {minus(t, summed<N>(l, scale(t, l.saved[0])))};
    };
    rule.pull = [](Local& l, const Tangents& dgy) -> Tangents {
      return {minus(dgy[0], scale(summed<N>(l, dgy[0]), l.saved[0]))};
    };
    rule.curve = [](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) -> Tangents {
      if (l.memo.empty()) l.memo = {summed<N>(l, gy[0]).neg() * l.saved[0]};
      const Tangent t = cast(dx[0], dtype_of(l));
      return {scale(minus(t, summed<N>(l, scale(t, l.saved[0]))), l.memo[0])};
    };
    add_rule("LogSoftmaxBackward0", std::move(rule));
  }
}

}  // namespace hesse::rules
