// Activation functions: one row per op, f' and f'' in what the node saved (x, or y = f(x)).
//
// Where PyTorch has a kernel for the backward, f' is that kernel applied to ones: the same conventions at the
// kinks, in one pass.
#include "factors.h"

#include <cmath>
#include <numbers>

namespace hesse::rules {

void glu();
void prelu_backward();

namespace {

constexpr double phi0 = std::numbers::inv_sqrtpi / std::numbers::sqrt2;             // the normal density at 0
constexpr double k = std::numbers::sqrt2 * std::numbers::inv_sqrtpi, c = 0.044715;  // of gelu's tanh

Factor by(Factor f, const Tensor& g) {
  f.c = f.c.defined() ? f.c * g : g;
  return f;
}

// The backward of an activation is an op of its own where a gradient was differentiated: y = g f'(s). d1, d2
// and d3 are f' and its derivatives in what the node saved, s; the latter two may use f' as `d`.
template <class N, class Save, class D1, class D2, class D3>
void slope(const char* name, Save save, D1 d1, D2 d2, D3 d3) {
  elementwise<N>(
      name,
      [save, d1, d2](N& n, Local& l) {
        const Tensor s = save(n, l);
        l.first[0] = d1(n, s);
        l.saved = {s, l.first[0].c, l.active[1] ? l.unpack(n.grad_output_) : Tensor()};
        if (l.active[1]) l.first[1] = by(d2(n, s, l.saved[1]), l.saved[2]);
      },
      [d2, d3](N& n, Local& l) {
        if (!l.active[1]) return;
        const Tensor &s = l.saved[0], &d = l.saved[1];
        l.second[1] = l.second[2] = Factor(d2(n, s, d));
        l.second[3] = by(d3(n, s, d), l.saved[2]);
      });
}

}  // namespace

void activations() {
  const auto self = [](auto& n, Local& l) { return l.unpack(n.self_); };
  const auto result = [](auto& n, Local& l) { return l.unpack(n.result_); };
  const auto output = [](auto& n, Local& l) { return l.unpack(n.output_); };

  // ---- piecewise linear -----------------------------------------------------------------------------------
  elementwise_linear<gen::ReluBackward0>(
      "ReluBackward0", [](auto& n, Local& l) { l.first[0] = mask(l, l.unpack(n.result_) != 0); });
  const auto threshold = [](auto& n, Local& l) {
    l.first[0] = mask(l, at::logical_not(l.unpack(n.self_) <= n.threshold));
  };
  elementwise_linear<gen::ThresholdBackward0>("ThresholdBackward0", threshold);
  elementwise_linear<gen::ThresholdBackward1>("ThresholdBackward1", threshold);
  elementwise_linear<gen::ThresholdBackwardBackward0>("ThresholdBackwardBackward0", threshold);
  // The sign of y is that of x: PyTorch refuses a negative slope in place.
  const auto leaky = [](auto& n, const Tensor& x) {
    return at::leaky_relu_backward(at::ones_like(x), x, n.negative_slope, false);
  };
  unary_linear<gen::LeakyReluBackward0>("LeakyReluBackward0", self, leaky);
  unary_linear<gen::LeakyReluBackward1>("LeakyReluBackward1", result, leaky);
  unary_linear<gen::LeakyReluBackwardBackward0>("LeakyReluBackwardBackward0", self, leaky);
  const auto rrelu = [](auto& n, const Tensor& x) {
    const Tensor noise = n.noise_.unpack();
    return at::rrelu_with_noise_backward(at::ones_like(x), x, noise, n.lower, n.upper, n.training, false);
  };
  unary_linear<gen::RreluWithNoiseBackward0>("RreluWithNoiseBackward0", self, rrelu);
  unary_linear<gen::RreluWithNoiseBackwardBackward0>("RreluWithNoiseBackwardBackward0", self, rrelu);
  unary_linear<gen::RreluWithNoiseBackward1>("RreluWithNoiseBackward1", result, [](auto& n, const Tensor& y) {
    const Tensor noise = n.noise_.unpack();
    return at::rrelu_with_noise_backward(at::ones_like(y), y, noise, n.lower, n.upper, n.training, true);
  });
  const auto hardtanh = [](auto& n, Local& l) {
    const Tensor x = l.unpack(n.self_);
    l.first[0] = mask(l, at::logical_or(x <= n.min_val, x >= n.max_val).logical_not());
  };
  elementwise_linear<gen::HardtanhBackward0>("HardtanhBackward0", hardtanh);
  elementwise_linear<gen::HardtanhBackwardBackward0>("HardtanhBackwardBackward0", hardtanh);
  elementwise_linear<gen::HardsigmoidBackward0>("HardsigmoidBackward0", [](auto& n, Local& l) {
    l.first[0] =
        selecting(indicator(l, l.unpack(n.self_).abs() < 3), 1.0F / 6.0F);  // the op's constant is a float
  });
  const auto shrink = [](auto& n, Local& l) {
    l.first[0] = mask(l, at::logical_not(l.unpack(n.self_).abs() <= n.lambd));
  };
  elementwise_linear<gen::HardshrinkBackward0>("HardshrinkBackward0", shrink);
  elementwise_linear<gen::SoftshrinkBackward0>("SoftshrinkBackward0", shrink);
  elementwise_linear<gen::HardshrinkBackwardBackward0>("HardshrinkBackwardBackward0", shrink);
  elementwise_linear<gen::SoftshrinkBackwardBackward0>("SoftshrinkBackwardBackward0", shrink);

  // ---- piecewise smooth -----------------------------------------------------------------------------------
  const auto none = [](auto&, const Tensor&, const Tensor&) { return Factor(0.0); };
  const auto hardswish1 = [](auto&, const Tensor& x) { return at::hardswish_backward(at::ones_like(x), x); };
  const auto hardswish2 = [](auto&, const Tensor& x, const Tensor& d) {
    return times(1.0 / 3, (x.abs() < 3).to(d.scalar_type()));
  };
  unary<gen::HardswishBackward0>("HardswishBackward0", self, hardswish1, hardswish2);
  slope<gen::HardswishBackwardBackward0>("HardswishBackwardBackward0", self, hardswish1, hardswish2, none);
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

  // The slope in y is linear.
  slope<gen::EluBackwardBackward0>(
      "EluBackwardBackward0", [](auto& n, Local& l) { return l.unpack(n.self_or_result_); },
      [elu](auto& n, const Tensor& s) { return elu(n.is_result)(n, s); },
      [](auto& n, const Tensor& s, const Tensor& d) {
        const double k = n.input_scale.toDouble();
        return n.is_result ? times(k, (s < 0).to(d.scalar_type())) : times(k, d * (s < 0));
      },
      [](auto& n, const Tensor& s, const Tensor& d) {
        const double k = n.input_scale.toDouble();
        return n.is_result ? Factor(0.0) : times(k * k, d * (s < 0));
      });

  // ---- smooth ---------------------------------------------------------------------------------------------
  unary<gen::SigmoidBackward0>(
      "SigmoidBackward0", result, [](auto&, const Tensor& y) { return y * at::rsub(y, 1); },
      [](auto&, const Tensor& y, const Tensor& d) { return d * at::rsub(y, 1, 2); });
  slope<gen::SigmoidBackwardBackward0>(
      "SigmoidBackwardBackward0", output, [](auto&, const Tensor& y) { return y * at::rsub(y, 1); },
      [](auto&, const Tensor& y, const Tensor&) { return Factor(at::rsub(y, 1, 2)); },
      [](auto&, const Tensor&, const Tensor&) { return Factor(-2.0); });
  slope<gen::TanhBackwardBackward0>(
      "TanhBackwardBackward0", output, [](auto&, const Tensor& y) { return at::rsub(y * y, 1); },
      [](auto&, const Tensor& y, const Tensor&) { return times(-2, y); },
      [](auto&, const Tensor&, const Tensor&) { return Factor(-2.0); });
  const auto log_sigmoid1 = [](auto&, const Tensor& x) { return x.neg().sigmoid(); };
  const auto log_sigmoid2 = [](auto&, const Tensor&, const Tensor& d) {
    return times(-1, d * at::rsub(d, 1));
  };
  unary<gen::LogSigmoidBackward0>("LogSigmoidBackward0", self, log_sigmoid1, log_sigmoid2);
  slope<gen::LogSigmoidBackwardBackward0>(
      "LogSigmoidBackwardBackward0", self, log_sigmoid1, log_sigmoid2,
      [](auto&, const Tensor&, const Tensor& d) { return Factor(d * at::rsub(d, 1) * at::rsub(d, 1, 2)); });
  // Beyond the threshold the op is linear; at it, PyTorch takes the slope of one side, the curvature of the
  // other.
  const auto softplus1 = [](auto& n, const Tensor& x) {
    return at::softplus_backward(at::ones_like(x), x, n.beta, n.threshold);
  };
  const auto softplus2 = [](auto& n, const Tensor& x, const Tensor& d) {
    const double beta = n.beta.toDouble();
    return times(beta, d * at::rsub(d, 1) * ((beta == 1 ? x : x * beta) < n.threshold));
  };
  unary<gen::SoftplusBackward0>("SoftplusBackward0", self, softplus1, softplus2);
  slope<gen::SoftplusBackwardBackward0>("SoftplusBackwardBackward0", self, softplus1, softplus2,
                                        [softplus2](auto& n, const Tensor& x, const Tensor& d) {
                                          Factor f = by(softplus2(n, x, d), at::rsub(d, 1, 2));
                                          f.alpha *= n.beta.toDouble();
                                          return f;
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
  // tanh:  f = x (1 + t) / 2, t = tanh(u), u = k (x + c x^3), q = 1 - t^2:
  //        t'   = q u'
  //        t''  = q (u'' - 2 t u'^2)
  //        t''' = q (u''' - 6 t u' u'' + (6 t^2 - 2) u'^3)
  //        f''  = t' + x t'' / 2,   f''' = 3/2 t'' + x t''' / 2
  const auto gelu1 = [](auto& n, const Tensor& x) {
    return at::gelu_backward(at::ones_like(x), x, n.approximate);
  };
  const auto gelu2 = [](auto& n, const Tensor& x, const Tensor&) {
    const Tensor x2 = x * x;
    if (n.approximate != "tanh") return times(phi0, at::rsub(x2, 2) * (x2 * -0.5).exp());
    const Tensor t = (x * (x2 * (k * c) + k)).tanh();
    const Tensor u1 = x2 * (3 * k * c) + k;
    return Factor(at::rsub(t * t, 1) * (x2 * (6 * k * c) + k - x * t * u1 * u1));
  };
  unary<gen::GeluBackward0>("GeluBackward0", self, gelu1, gelu2);
  slope<gen::GeluBackwardBackward0>(
      "GeluBackwardBackward0", self, gelu1, gelu2, [](auto& n, const Tensor& x, const Tensor&) {
        const Tensor x2 = x * x;
        if (n.approximate != "tanh") return times(phi0, x * (x2 - 4) * (x2 * -0.5).exp());
        const Tensor t = (x * (x2 * (k * c) + k)).tanh(), t2 = t * t;
        const Tensor u1 = x2 * (3 * k * c) + k, u2 = x * (6 * k * c);
        const Tensor bend = u2 - 2 * t * u1 * u1;
        const Tensor third = 6 * k * c - 6 * t * u1 * u2 + (6 * t2 - 2) * u1.pow(3);
        return times(0.5, at::rsub(t2, 1) * (3 * bend + x * third));
      });

  // ---- the backward of dropout: a mask and a number
  // ---------------------------------------------------------
  elementwise_linear<gen::NativeDropoutBackwardBackward0>(
      "NativeDropoutBackwardBackward0",
      [](auto& n, Local& l) { l.first[0] = times(n.scale, indicator(l, l.unpack(n.mask_))); });

  glu();
  prelu_backward();
}

}  // namespace hesse::rules
