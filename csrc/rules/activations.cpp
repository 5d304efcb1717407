// Activation functions: one row per op, f' and f'' in what the node saved (x, or y = f(x)).
//
// Where PyTorch has a kernel for the backward, f' is that kernel applied to ones: the same conventions at the
// kinks, in one pass.
#include "factors.h"
#include "shapes.h"

#include <cmath>
#include <numbers>

namespace hesse::rules {

namespace {

// y = a s, s = sigmoid(b), a and b the halves of x along an axis: the halves of what is x's own are views.
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

}  // namespace

void activations() {
  const auto self = [](auto& n, Local& l) { return l.unpack(n.self_); };
  const auto result = [](auto& n, Local& l) { return l.unpack(n.result_); };

  // ---- piecewise linear -----------------------------------------------------------------------------------
  elementwise_linear<gen::ReluBackward0>(
      "ReluBackward0", [](auto& n, Local& l) { l.first[0] = mask(l, l.unpack(n.result_) != 0); });
  const auto threshold = [](auto& n, Local& l) {
    l.first[0] = mask(l, at::logical_not(l.unpack(n.self_) <= n.threshold));
  };
  elementwise_linear<gen::ThresholdBackward0>("ThresholdBackward0", threshold);
  elementwise_linear<gen::ThresholdBackward1>("ThresholdBackward1", threshold);
  // The sign of y is that of x: PyTorch refuses a negative slope in place.
  const auto leaky = [](auto& n, const Tensor& x) {
    return at::leaky_relu_backward(at::ones_like(x), x, n.negative_slope, false);
  };
  unary_linear<gen::LeakyReluBackward0>("LeakyReluBackward0", self, leaky);
  unary_linear<gen::LeakyReluBackward1>("LeakyReluBackward1", result, leaky);
  unary_linear<gen::RreluWithNoiseBackward0>("RreluWithNoiseBackward0", self, [](auto& n, const Tensor& x) {
    const Tensor noise = n.noise_.unpack();
    return at::rrelu_with_noise_backward(at::ones_like(x), x, noise, n.lower, n.upper, n.training, false);
  });
  unary_linear<gen::RreluWithNoiseBackward1>("RreluWithNoiseBackward1", result, [](auto& n, const Tensor& y) {
    const Tensor noise = n.noise_.unpack();
    return at::rrelu_with_noise_backward(at::ones_like(y), y, noise, n.lower, n.upper, n.training, true);
  });
  elementwise_linear<gen::HardtanhBackward0>("HardtanhBackward0", [](auto& n, Local& l) {
    const Tensor x = l.unpack(n.self_);
    l.first[0] = mask(l, at::logical_or(x <= n.min_val, x >= n.max_val).logical_not());
  });
  elementwise_linear<gen::HardsigmoidBackward0>("HardsigmoidBackward0", [](auto& n, Local& l) {
    l.first[0] =
        selecting(indicator(l, l.unpack(n.self_).abs() < 3), 1.0F / 6.0F);  // the op's constant is a float
  });
  const auto shrink = [](auto& n, Local& l) {
    l.first[0] = mask(l, at::logical_not(l.unpack(n.self_).abs() <= n.lambd));
  };
  elementwise_linear<gen::HardshrinkBackward0>("HardshrinkBackward0", shrink);
  elementwise_linear<gen::SoftshrinkBackward0>("SoftshrinkBackward0", shrink);

  // ---- piecewise smooth -----------------------------------------------------------------------------------
  unary<gen::HardswishBackward0>(
      "HardswishBackward0", self,
      [](auto&, const Tensor& x) { return at::hardswish_backward(at::ones_like(x), x); },
      [](auto&, const Tensor& x, const Tensor& d) {
        return times(1.0 / 3, (x.abs() < 3).to(d.scalar_type()));
      });
  // elu, selu and celu are one formula, and so is its slope: below 0, f'' = input_scale f'. An op in place
  // saved y, whose sign is that of x.
  const auto elu = [](bool is_result) {
    return [is_result](auto& n, const Tensor& s) {
      return at::elu_backward(at::ones_like(s), n.alpha, n.scale, n.input_scale, is_result, s);
    };
  };
  const auto elu2 = [](auto& n, const Tensor& s, const Tensor& d) {
    return times(n.input_scale.toDouble(), d * (s < 0));
  };
  unary<gen::EluBackward0>("EluBackward0", self, elu(false), elu2);
  unary<gen::EluBackward1>("EluBackward1", result, elu(true), elu2);
  const auto celu = [](bool is_result) {
    return [is_result](auto& n, const Tensor& s) {
      return at::elu_backward(at::ones_like(s), n.alpha, 1, 1.0 / n.alpha.toFloat(), is_result, s);
    };
  };
  const auto celu2 = [](auto& n, const Tensor& s, const Tensor& d) {
    return times(1.0 / n.alpha.toFloat(), d * (s < 0));
  };
  unary<gen::CeluBackward0>("CeluBackward0", self, celu(false), celu2);
  unary<gen::CeluBackward1>("CeluBackward1", result, celu(true), celu2);

  // ---- smooth ---------------------------------------------------------------------------------------------
  unary<gen::SigmoidBackward0>(
      "SigmoidBackward0", result, [](auto&, const Tensor& y) { return y * at::rsub(y, 1); },
      [](auto&, const Tensor& y, const Tensor& d) { return d * at::rsub(y, 1, 2); });
  unary<gen::LogSigmoidBackward0>(
      "LogSigmoidBackward0", self, [](auto&, const Tensor& x) { return x.neg().sigmoid(); },
      [](auto&, const Tensor&, const Tensor& d) { return times(-1, d * at::rsub(d, 1)); });
  // Beyond the threshold the op is linear; at it, PyTorch takes the slope of one side, the curvature of the
  // other.
  unary<gen::SoftplusBackward0>(
      "SoftplusBackward0", self,
      [](auto& n, const Tensor& x) {
        return at::softplus_backward(at::ones_like(x), x, n.beta, n.threshold);
      },
      [](auto& n, const Tensor& x, const Tensor& d) {
        const double beta = n.beta.toDouble();
        return times(beta, d * at::rsub(d, 1) * ((beta == 1 ? x : x * beta) < n.threshold));
      });
  // f = x s, s = sigmoid(x): f' = s + x q, f'' = q (2 + x (1 - 2 s)), q = s (1 - s).
  elementwise<gen::SiluBackward0>(
      "SiluBackward0",
      [](auto& n, Local& l) {
        const Tensor x = l.unpack(n.self_), s = x.sigmoid(), q = s * at::rsub(s, 1);
        l.saved = {x, s, q};
        l.first[0] = at::addcmul(s, x, q);
      },
      [](auto&, Local& l) { l.second[0] = (l.saved[0] * at::rsub(l.saved[1], 1, 2) + 2) * l.saved[2]; });
  // f = x t, t = tanh(softplus(x)): f' = t + x q, f'' = q (2 + x (1 - s (1 + 2 t))), q = t' = s (1 - t^2).
  elementwise<gen::MishBackward0>(
      "MishBackward0",
      [](auto& n, Local& l) {
        const Tensor x = l.unpack(n.self_), s = x.sigmoid(), t = at::softplus(x).tanh(),
                     q = s * at::rsub(t * t, 1);
        l.saved = {x, s, t, q};
        l.first[0] = at::addcmul(t, x, q);
      },
      [](auto&, Local& l) {
        const Tensor &x = l.saved[0], &s = l.saved[1], &t = l.saved[2], &q = l.saved[3];
        l.second[0] = (x * at::rsub(s * (t * 2 + 1), 1) + 2) * q;
      });
  // exact: f'' = (2 - x^2) phi(x).
  // tanh:  f = x (1 + t) / 2, t = tanh(u), u = k (x + c x^3): f'' = (1 - t^2) (k (1 + 6 c x^2) - x t u'^2).
  unary<gen::GeluBackward0>(
      "GeluBackward0", self,
      [](auto& n, const Tensor& x) { return at::gelu_backward(at::ones_like(x), x, n.approximate); },
      [](auto& n, const Tensor& x, const Tensor&) {
        const Tensor x2 = x * x;
        if (n.approximate != "tanh") {
          const double phi0 = std::numbers::inv_sqrtpi / std::numbers::sqrt2;
          return times(phi0, at::rsub(x2, 2) * (x2 * -0.5).exp());
        }
        const double k = std::numbers::sqrt2 * std::numbers::inv_sqrtpi, c = 0.044715;
        const Tensor t = (x * (x2 * (k * c) + k)).tanh();
        const Tensor slope = x2 * (3 * k * c) + k;
        return Factor(at::rsub(t * t, 1) * (x2 * (6 * k * c) + k - x * t * slope * slope));
      });

  // ---- the backward of dropout: a mask and a number ---------------------------------------------------------
  elementwise_linear<gen::NativeDropoutBackwardBackward0>(
      "NativeDropoutBackwardBackward0",
      [](auto& n, Local& l) { l.first[0] = times(n.scale, indicator(l, l.unpack(n.mask_))); });

  glu();
}

}  // namespace hesse::rules
