// The exponential of a matrix. Its derivative in a direction E is a block of an exponential twice as large,
//
//     exp [A E; 0 A] = [exp A, L(A, E); 0, exp A]      push dY = L(A, dA), pull gA = L(A', gY)
//
// and the derivative of L(A', gY) is the same again, of the blocks [A' dA'; 0 A'] in the direction [gY 0; 0
// gY].
#include "matrices.h"

namespace hesse::rules {

namespace {

// [a b; 0 a]
Tensor block(const Tensor& a, const Tensor& b) {
  return at::cat({at::cat({a, b}, -1), at::cat({at::zeros_like(a), a}, -1)}, -2);
}
Tensor upper_right(const Tensor& t, int64_t n) { return t.narrow(-2, 0, n).narrow(-1, t.size(-1) - n, n); }

// L(A, E) for rows E.
Tensor directional(const Tensor& e, const Tensor& a) {
  return upper_right(at::linalg_matrix_exp(block(a.expand_as(e), e)), e.size(-1));
}

}  // namespace

void matrix_exponential() {
  using N = gen::LinalgMatrixExpBackward0;
  auto along = [](Local& l, const Tangent& t, const AxesMap& f, const Tensor& known) -> Tangents {
    const int64_t n = known.size(-1);
    return {unstacked(l, map_axes(stacked(l, t, Form::matrix), {1, 2}, {n, n}, f, known), Form::matrix)};
  };
  Rule rule;
  rule.save = [](Local& l) {
    l.batch = batch_of(l.in_shape[0], 2);
    l.saved = {stacked(l, l.unpack(node<N>(l).self_))};
  };
  rule.push = [along](Local& l, const Tangents& dx) { return along(l, dx[0], directional, l.saved[0]); };
  rule.pull = [along](Local& l, const Tangents& dgy) {
    return along(l, dgy[0], directional, l.saved[0].mT());
  };
  rule.curve = [along](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
    // known: [D, A' and gY, n, n]
    const Tensor a = l.saved[0].mT();
    auto curved = [](const Tensor& rows, const Tensor& known) {
      const Tensor at = known.select(-3, 0).expand_as(rows), g = known.select(-3, 1).expand_as(rows);
      const Tensor large = block(at, rows.mT()), none = at::zeros_like(g);
      const Tensor along_g = at::cat({at::cat({g, none}, -1), at::cat({none, g}, -1)}, -2);
      return upper_right(directional(along_g, large), rows.size(-1));
    };
    return along(l, dx[0], curved, at::stack({a, gy[0].reshape(a.sizes())}, 1));
  };
  add_rule("LinalgMatrixExpBackward0", std::move(rule));
}

}  // namespace hesse::rules
