// renorm: slices along one axis whose p-norm r is beyond m are scaled down to it, y = s x with s = m / (r +
// eps):
//
//     push   dy  = s dx + s' x <g, dx>
//     pull   dgx = s dgy + s' g <x, dgy>
//     curve  dgx = s' (gy <g, dx> + g <gy, dx>) + s'' g <x, gy> <g, dx> + s' <x, gy> H dx
//
// where g = dr/dx = sgn(x) (|x| / r)^(p - 1), and H dx = (p - 1) / r ((|x| / r)^(p - 2) dx - g <g, dx>).
#include "embeddings.h"
#include "reduction.h"
#include "shapes.h"

#include <limits>

namespace hesse::rules {

namespace {

using N = gen::RenormBackward0;

constexpr double eps = 1e-7;  // PyTorch's

Axes slices(Local& l) {
  const Shape& x = l.in_shape[0];
  Shape others;
  for (int64_t a = 0; a < static_cast<int64_t>(x.size()); ++a) {
    if (a != wrap(node<N>(l).dim, x)) others.push_back(a);
  }
  return axes_of(x, others);
}

Tangent met(const Tangent& t, const Tensor& w, const Axes& a) { return spread(total(scale(t, w), a), a); }

// saved: x, g, s, s', s'', and the factors of H: (p - 1) / r (|x| / r)^(p - 2) and (p - 1) / r; undefined: H
// = 0.
void save(Local& l) {
  auto& n = node<N>(l);
  const double p = n.p.toDouble(), m = n.maxnorm.toDouble();
  const Axes a = slices(l);
  const Tensor x = l.unpack(n.self_), norm = at::linalg_vector_norm(x, p, a.gone, true);
  const Tensor beyond = norm > m, one = at::ones({}, x.options()), none = at::zeros({}, x.options());
  const Tensor r = at::where(beyond, norm, one), i = (r + eps).reciprocal();
  const Tensor s1 = at::where(beyond, i * i * -m, none), s2 = at::where(beyond, i * i * i * (2 * m), none);
  l.saved = {x, {}, at::where(beyond, i * m, one), s1, s2, {}, {}};
  const Tensor share = x.abs() / r;
  if (p == std::numeric_limits<double>::infinity()) {
    const Tensor most = (x.abs() == norm).to(x.scalar_type());
    l.saved[1] = x.sgn() * most / most.sum(a.gone, true);
  } else if (p == 1.0) {
    l.saved[1] = x.sgn();
  } else {
    l.saved[1] = p == 2.0 ? x / r : at::where(x == 0, none, x.sgn() * share.pow(p - 1));
    l.saved[6] = r.reciprocal() * (p - 1);
    l.saved[5] = p == 2.0 ? l.saved[6] : l.saved[6] * at::where(x == 0, none, share.pow(p - 2));
  }
}

Tangents curve(Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
  const Axes a = slices(l);
  const Tensor &x = l.saved[0], &g = l.saved[1], &s1 = l.saved[3], &s2 = l.saved[4];
  if (l.bent.empty()) {
    const Tensor xg = (x * gy[0]).sum(a.gone, true), h = s1 * xg;
    Tensor along = s1 * gy[0] + s2 * xg * g;
    if (l.saved[6].defined()) along = along - h * l.saved[6] * g;
    l.bent = {along, s1 * g, l.saved[5].defined() ? h * l.saved[5] : Tensor()};
  }
  const Tangent& t = dx[0];
  Tangent dgx = scale(met(t, g, a), l.bent[0]);
  accumulate(dgx, scale(met(t, gy[0], a), l.bent[1]));
  if (l.bent[2].defined()) accumulate(dgx, scale(t, l.bent[2]));
  return {std::move(dgx)};
}

}  // namespace

void renorm() {
  auto jacobian = [](Local& l, const Tangent& t, size_t from, size_t to) -> Tangents {
    Tangent out = scale(t, l.saved[2]);
    accumulate(out, scale(scale(met(t, l.saved[from], slices(l)), l.saved[3]), l.saved[to]));
    return {std::move(out)};
  };
  Rule rule;
  rule.save = save;
  rule.push = [jacobian](Local& l, const Tangents& dx) { return jacobian(l, dx[0], 1, 0); };
  rule.pull = [jacobian](Local& l, const Tangents& dgy) { return jacobian(l, dgy[0], 0, 1); };
  rule.curve = curve;
  add_rule("RenormBackward0", std::move(rule));
}

}  // namespace hesse::rules
