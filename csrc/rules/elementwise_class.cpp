// The generic part of the elementwise class (see elementwise.h).
#include "factors.h"

#include "kernels/combine.h"

namespace hesse::rules {

namespace {

// Tangents scaled by factors. In x * x both operands are one value: their products are formed once, and add
// up by their numbers.
class Scaled {
 public:
  const Tangent& operator()(const Tangent& t, const Factor& f, const Shape& to) {
    for (const Entry& e : done_) {
      if (e.to == to && hesse::same(e.f, f) && hesse::same(e.t, t)) return e.result;
    }
    Tangent result = scale(t, f);
    if (result.shape != to) result = sum_to(std::move(result), to);
    done_.push_back({t, f, to, std::move(result)});
    return done_.back().result;
  }

 private:
  struct Entry {
    Tangent t;
    Factor f;
    Shape to;
    Tangent result;
  };
  std::vector<Entry> done_;
};

}  // namespace

void lengthen_loops(std::vector<Factor>& factors) {
  for (size_t i = 0; i < factors.size(); ++i) {
    if (!factors[i].c.defined()) continue;
    const Tensor given = factors[i].c;
    factors[i].c = kernels::with_long_loops(given);
    if (factors[i].c.is_same(given)) continue;
    for (size_t j = i + 1; j < factors.size(); ++j) {
      if (factors[j].c.defined() && same_factor(factors[j].c, given)) factors[j].c = factors[i].c;
    }
  }
}

Tangents elementwise_push(Local& l, const Tangents& dx) {
  Tangent dy = zero_like(dx[0], l.out_shape[0]);
  const bool complex = c10::isComplexType(l.out_options[0].dtype().toScalarType());
  bool first = true;
  Scaled scaled;
  for (size_t i = 0; i < dx.size(); ++i) {
    if (dx[i].zero() || l.first[i].zero()) continue;
    if (first) dy.options = complex ? l.out_options[0] : dx[i].options;
    first = false;
    const Tangent t = expand(cast(dx[i], dy.options.dtype().toScalarType()), l.out_shape[0]);
    accumulate(dy, scaled(t, l.first[i], l.out_shape[0]));
  }
  return {std::move(dy)};
}

Tangents elementwise_pull(Local& l, const Tangents& dgy) {
  Tangents dgx(l.inputs());
  Scaled scaled;
  for (size_t i = 0; i < l.inputs(); ++i) {
    if (l.wanted[i] && !l.first[i].zero()) dgx[i] = scaled(dgy[0], conjugated(l.first[i]), l.in_shape[i]);
  }
  return dgx;
}

Tangents elementwise_curve(Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
  const size_t n = l.inputs();
  Tangents dgx(n);
  if (l.bent.empty()) l.bent.resize(n * n);  // gy * f_ij, shared by all chunks
  Scaled scaled;
  for (size_t i = 0; i < n; ++i) {
    if (!l.wanted[i]) continue;
    for (size_t j = 0; j < n; ++j) {
      const Factor& f = l.second[i * n + j];
      if (dx[j].zero() || f.zero()) continue;
      Tensor& c = l.bent[i * n + j];
      if (!c.defined()) c = f.c.defined() ? at::mul(gy[0], conjugated(f).c) : gy[0];
      Factor by(c);
      by.alpha = f.alpha;
      const Tangent t = conj(cast(expand(dx[j], l.out_shape[0]), gy[0].scalar_type()));
      const Tangent& part = scaled(t, by, l.in_shape[i]);
      if (dgx[i].K == 0) dgx[i] = zero_like(part, l.in_shape[i]);
      accumulate(dgx[i], part);
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
