// The generic part of the elementwise class (see elementwise.h).
#include "elementwise.h"

namespace hesse::rules {

Tangents elementwise_push(Local& l, const Tangents& dx) {
  Tangent dy = zero_like(dx[0], l.out_shape[0]);
  bool first = true;
  for (size_t i = 0; i < dx.size(); ++i) {
    if (dx[i].zero() || l.first[i].zero()) continue;
    if (first) dy.options = dx[i].options;
    first = false;
    accumulate(dy, scale(expand(cast(dx[i], dy.options.dtype().toScalarType()), l.out_shape[0]), l.first[i]));
  }
  return {std::move(dy)};
}

Tangents elementwise_pull(Local& l, const Tangents& dgy) {
  Tangents dgx(l.inputs());
  for (size_t i = 0; i < l.inputs(); ++i) {
    if (l.wanted[i] && !l.first[i].zero()) dgx[i] = sum_to(scale(dgy[0], l.first[i]), l.in_shape[i]);
  }
  return dgx;
}

Tangents elementwise_curve(Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
  const size_t n = l.inputs();
  Tangents dgx(n);
  if (l.memo.empty()) l.memo.resize(n * n);  // gy * f_ij, shared by all chunks
  for (size_t i = 0; i < n; ++i) {
    if (!l.wanted[i]) continue;
    for (size_t j = 0; j < n; ++j) {
      const Factor& f = l.second[i * n + j];
      if (dx[j].zero() || f.zero()) continue;
      Tensor& c = l.memo[i * n + j];
      if (!c.defined()) c = f.c.defined() ? at::mul(gy[0], f.c) : gy[0];
      Tangent t = scale(expand(dx[j], l.out_shape[0]), Factor(c));
      if (f.alpha != 1.0) t = scale(std::move(t), f.alpha);
      t = sum_to(cast(std::move(t), gy[0].scalar_type()), l.in_shape[i]);
      if (dgx[i].K == 0) dgx[i] = zero_like(t, l.in_shape[i]);
      accumulate(dgx[i], std::move(t));
    }
  }
  return dgx;
}

void zero(const char* name) {
  Rule rule;
  rule.push = [](Local& l, const Tangents& dx) {
    Tangents dy;
    for (const Shape& shape : l.out_shape) dy.push_back(zero_like(dx[0], shape));
    return dy;
  };
  rule.pull = [](Local& l, const Tangents&) { return Tangents(l.inputs()); };
  add_rule(name, std::move(rule));
}

}  // namespace hesse::rules
