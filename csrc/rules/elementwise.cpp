// Elementwise functions of one tensor: one row per op, f' and f'' in what the node saved (x, or y = f(x)).
#include "elementwise.h"

#include <cmath>

namespace hesse::rules {

void elementwise() {
  const auto self = [](auto& n, Local& l) { return l.unpack(n.self_); };
  const auto result = [](auto& n, Local& l) { return l.unpack(n.result_); };

  // ---- exponentials and logarithms ------------------------------------------------------------------------
  unary<gen::ExpBackward0>(
      "ExpBackward0", result, [](auto&, const Tensor& y) { return y; },
      [](auto&, const Tensor& y, const Tensor&) { return y; });
  unary<gen::LogBackward0>(
      "LogBackward0", self, [](auto&, const Tensor& x) { return x.reciprocal(); },
      [](auto&, const Tensor&, const Tensor& d) { return -(d * d); });

  // ---- hyperbolic ------------------------------------------------------------------------------------------
  unary<gen::TanhBackward0>(
      "TanhBackward0", result, [](auto&, const Tensor& y) { return at::rsub(y * y, 1); },
      [](auto&, const Tensor& y, const Tensor& d) { return y * d * -2; });
}

}  // namespace hesse::rules
