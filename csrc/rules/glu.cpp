// Gated linear units, y = a s with s = sigmoid(b), a and b the halves of x along an axis:
//
//     push   dy  = s da + a s' db
//     pull   dga = s dgy,              dgb = a s' dgy
//     curve  dga = gy s' db,           dgb = gy (s' da + a s'' db)
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

}  // namespace

void glu() {
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
    if (l.memo.empty()) l.memo = {gy[0] * l.saved[2], gy[0] * l.saved[3]};
    const Tangent a = h.take_a(dx[0]), b = h.take_b(dx[0]);
    return {h.joined(scale(b, l.memo[0]), plus(scale(a, l.memo[0]), scale(b, l.memo[1])))};
  };
  add_rule("GluBackward0", std::move(rule));
}

}  // namespace hesse::rules
