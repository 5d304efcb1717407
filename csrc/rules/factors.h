// What the rows of elementwise rules share in writing their factors.
#pragma once

#include "elementwise.h"

#include <optional>

namespace hesse::rules {

// alpha * c, without the pass over c that a product would cost.
inline Factor times(double alpha, Tensor c) {
  Factor f(std::move(c));
  f.alpha = alpha;
  return f;
}

// What the transpose multiplies with: the conjugate.
inline Tensor conjugated(const Tensor& t) { return t.is_complex() ? at::conj_physical(t) : t; }
inline Factor conjugated(Factor f) {
  if (f.c.defined()) f.c = conjugated(f.c);
  return f;
}

inline at::ScalarType dtype_of(const Local& l) { return l.out_options[0].dtype().toScalarType(); }

// A condition as numbers, 0 and 1.
inline Tensor indicator(const Local& l, const Tensor& condition) { return condition.to(dtype_of(l)); }

// A factor whose zeros select (see Factor).
inline Factor selecting(Tensor c, double alpha = 1.0) {
  Factor f = times(alpha, std::move(c));
  f.selects = true;
  return f;
}
inline Factor mask(const Local& l, const Tensor& condition) { return selecting(indicator(l, condition)); }

// An input as the op saw it: in the dtype of its result, so that the derivatives lose nothing to a narrower
// one.
inline Tensor operand(const Local& l, const torch::autograd::SavedVariable& saved) {
  Tensor t = l.unpack(saved);
  return t.scalar_type() == dtype_of(l) ? t : t.to(dtype_of(l));
}

// The value of an operand that is a Python number. That is a constant of the program, not data, so it may be
// read, and as a factor it costs nothing.
inline std::optional<double> number(const Tensor& t) {
  if (!t.unsafeGetTensorImpl()->is_wrapped_number() || !t.is_cpu() || t.is_complex()) return std::nullopt;
  return t.item().toDouble();
}

}  // namespace hesse::rules
