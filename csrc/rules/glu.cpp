// Gated linear units, y = a s with s = sigmoid(b), a and b the halves of x along an axis:
//
//     push   dy  = s da + a s' db
//     pull   dga = s dgy,              dgb = a s' dgy
//     curve  dga = gy s' db,           dgb = gy (s' da + a s'' db)
//
// Its backward, a node of its own where a gradient was differentiated, is y_a = g s and y_b = g a s'.
#include "elementwise.h"
#include "shapes.h"

namespace hesse::rules {

namespace {

// Where the halves lie in x.
struct Halves {
  Shape in;
  Geometry a, b;

  Halves(const Shape& shape, int64_t dim) : in(shape), a{shape, row_major(shape), 0} {
    const int64_t axis = wrap(dim, shape);
    a.size[axis] /= 2;
    b = a;
    b.offset = a.size[axis] * a.stride[axis];
  }
  Tangent take_a(const Tangent& t) const { return take(t, a); }
  Tangent take_b(const Tangent& t) const { return take(t, b); }
  Tangent joined(const Tangent& ta, const Tangent& tb) const {
    Tangent t = put(ta, a, in);
    accumulate(t, put(tb, b, in));
    return t;
  }
};

Tangent plus(Tangent t, Tangent other) {
  accumulate(t, std::move(other));
  return t;
}

void forward() {
  using N = gen::GluBackward0;
  auto halves = [](Local& l) { return Halves(l.in_shape[0], node<N>(l).dim); };
  Rule rule;
  rule.save = [](Local& l) {  // s, a s', s', a s''
    const int64_t dim = node<N>(l).dim;
    const Tensor x = l.unpack(node<N>(l).self_);
    const int64_t n = x.size(dim) / 2;
    const Tensor a = x.narrow(dim, 0, n), s = x.narrow(dim, n, n).sigmoid(), s1 = s * at::rsub(s, 1);
    l.saved = {s, a * s1, s1, a * s1 * at::rsub(s, 1, 2)};
  };
  rule.push = [halves](Local& l, const Tangents& dx) -> Tangents {
    const Halves h = halves(l);
    return {plus(scale(h.take_a(dx[0]), l.saved[0]), scale(h.take_b(dx[0]), l.saved[1]))};
  };
  rule.pull = [halves](Local& l, const Tangents& dgy) -> Tangents {
    return {halves(l).joined(scale(dgy[0], l.saved[0]), scale(dgy[0], l.saved[1]))};
  };
  rule.curve = [halves](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) -> Tangents {
    const Halves h = halves(l);
    if (l.bent.empty()) l.bent = {gy[0] * l.saved[2], gy[0] * l.saved[3]};
    const Tangent a = h.take_a(dx[0]), b = h.take_b(dx[0]);
    return {h.joined(scale(b, l.bent[0]), plus(scale(a, l.bent[0]), scale(b, l.bent[1])))};
  };
  add_rule("GluBackward0", std::move(rule));
}

void backward() {
  using N = gen::GluBackwardBackward0;
  auto halves = [](Local& l) { return Halves(l.out_shape[0], node<N>(l).dim); };
  Rule rule;
  rule.save = [](Local& l) {  // s, a s', g s', g a s'', then what the curve needs: g, a, s', s'', s'''
    const int64_t dim = node<N>(l).dim;
    const Tensor x = l.unpack(node<N>(l).self_),
                 g = l.active[1] ? l.unpack(node<N>(l).grad_output_) : Tensor();
    const int64_t n = x.size(dim) / 2;
    const Tensor a = x.narrow(dim, 0, n), s = x.narrow(dim, n, n).sigmoid();
    const Tensor s1 = s * at::rsub(s, 1), s2 = s1 * at::rsub(s, 1, 2);
    l.saved = {s, a * s1, {}, {}, g, a, s1, s2, s1 * at::rsub(s1, 1, 6)};
    if (!l.active[1]) return;
    l.saved[2] = g * s1;
    l.saved[3] = g * a * s2;
  };
  rule.push = [halves](Local& l, const Tangents& dx) -> Tangents {
    const Halves h = halves(l);
    Tangent a, b;
    if (!dx[0].zero()) {
      add_to(a, scale(dx[0], l.saved[0]));
      add_to(b, scale(dx[0], l.saved[1]));
    }
    if (!dx[1].zero()) {
      const Tangent ta = h.take_a(dx[1]), tb = h.take_b(dx[1]);
      add_to(a, scale(tb, l.saved[2]));
      add_to(b, plus(scale(ta, l.saved[2]), scale(tb, l.saved[3])));
    }
    return {h.joined(a, b)};
  };
  rule.pull = [halves](Local& l, const Tangents& dgy) {
    const Halves h = halves(l);
    const Tangent a = h.take_a(dgy[0]), b = h.take_b(dgy[0]);
    Tangents dgx(2);
    if (l.wanted[0]) dgx[0] = plus(scale(a, l.saved[0]), scale(b, l.saved[1]));
    if (l.wanted[1]) {
      dgx[1] = h.joined(scale(b, l.saved[2]), plus(scale(a, l.saved[2]), scale(b, l.saved[3])));
    }
    return dgx;
  };
  rule.curve = [halves](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
    Tangents dgx(2);
    if (!l.active[1]) return dgx;
    const Halves h = halves(l);
    if (l.bent.empty()) {  // second derivatives by g and a, g and b, a and b, b and b
      const int64_t dim = node<N>(l).dim, n = gy[0].size(dim) / 2;
      const Tensor ha = gy[0].narrow(dim, 0, n), hb = gy[0].narrow(dim, n, n);
      const Tensor &g = l.saved[4], &a = l.saved[5], &s1 = l.saved[6], &s2 = l.saved[7], &s3 = l.saved[8];
      l.bent = {hb * s1, ha * s1 + hb * a * s2, hb * g * s2, g * (ha * s2 + hb * a * s3)};
    }
    Tangent a, b;
    if (!dx[0].zero() && l.wanted[1]) {
      add_to(a, scale(dx[0], l.bent[0]));
      add_to(b, scale(dx[0], l.bent[1]));
    }
    if (!dx[1].zero()) {
      const Tangent ta = h.take_a(dx[1]), tb = h.take_b(dx[1]);
      if (l.wanted[0]) dgx[0] = plus(scale(ta, l.bent[0]), scale(tb, l.bent[1]));
      if (l.wanted[1]) {
        add_to(a, scale(tb, l.bent[2]));
        add_to(b, plus(scale(ta, l.bent[2]), scale(tb, l.bent[3])));
      }
    }
    if (a.K > 0) dgx[1] = h.joined(a, b);
    return dgx;
  };
  add_rule("GluBackwardBackward0", std::move(rule));
}

}  // namespace

void glu() {
  forward();
  backward();
}

}  // namespace hesse::rules
