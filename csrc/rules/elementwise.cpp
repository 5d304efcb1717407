// Elementwise functions of one tensor: one row per op, f' and f'' in what the node saved (x, or y = f(x)).
// Activations have a file of their own.
#include "factors.h"

#include <cmath>
#include <limits>
#include <numbers>

namespace hesse::rules {

void activations();

namespace {

constexpr double pi = std::numbers::pi;
constexpr double ln2 = std::numbers::ln2;
constexpr double ln10 = std::numbers::ln10;
constexpr double inv_sqrt_pi = std::numbers::inv_sqrtpi;
const double sqrt_2pi = std::sqrt(2 * pi);

double epsilon(const Tensor& x) {
  switch (x.scalar_type()) {
    case at::kDouble:
      return std::numeric_limits<double>::epsilon();
    case at::kHalf:
      return std::numeric_limits<c10::Half>::epsilon();
    case at::kBFloat16:
      return std::numeric_limits<c10::BFloat16>::epsilon();
    default:
      return std::numeric_limits<float>::epsilon();
  }
}

// x^p. A small whole exponent takes a few products, where the library's pow takes a logarithm.
Tensor power(const Tensor& x, double p) {
  constexpr double most = 16;
  if (p == 0 || p != std::round(p) || std::abs(p) > most) return x.pow(p);
  Tensor square = p < 0 ? x.reciprocal() : x, result;
  for (int n = std::abs(static_cast<int>(p));; square = square * square) {
    if (n & 1) result = result.defined() ? result * square : square;
    if ((n >>= 1) == 0) return result;
  }
}

// A function of x that is 0/0 at x = 0, with its limit there; also where x is so small that it cancels.
template <class F>
Tensor with_limit(const Tensor& x, double limit, F f) {
  const Tensor tiny = x.abs() <= epsilon(x);
  return f(x.masked_fill(tiny, 1)).masked_fill(tiny, limit);
}

// d/dx of the modified Bessel function I1 = y, and of I1 exp(-|x|) = y.
Tensor i1_slope(const Tensor& x, const Tensor& y) {
  return with_limit(x, 0.5, [&y](const Tensor& z) { return z.i0() - y / z; });
}
Tensor i1e_slope(const Tensor& x, const Tensor& y) {
  return with_limit(x, 0.5,
                    [&y](const Tensor& z) { return at::special_i0e(z) - y * (z.sgn() + z.reciprocal()); });
}

// Two inputs, of which only the second has a derivative.
template <class N, class First, class Second>
void in_the_second(const char* name, First first, Second second) {
  elementwise<N>(name, first, second);
  Rule rule = *find_rule(name);
  rule.covers = [](Local& l) { return !l.active[0]; };
  add_rule(name, std::move(rule));
}

}  // namespace

void elementwise() {
  const auto self = [](auto& n, Local& l) { return l.unpack(n.self_); };
  const auto result = [](auto& n, Local& l) { return l.unpack(n.result_); };
  const auto constant = [](double slope) { return [slope](auto&, Local& l) { l.first[0] = slope; }; };

  // ---- constant slope -------------------------------------------------------------------------------------
  elementwise_linear<gen::NegBackward0>("NegBackward0", constant(-1));
  elementwise_linear<gen::FracBackward0>("FracBackward0", constant(1));
  elementwise_linear<gen::Deg2RadBackward0>("Deg2RadBackward0", constant(pi / 180));
  elementwise_linear<gen::Rad2DegBackward0>("Rad2DegBackward0", constant(180 / pi));

  // ---- zero on purpose ------------------------------------------------------------------------------------
  for (const char* name :
       {"CeilBackward0", "FloorBackward0", "RoundBackward0", "RoundBackward1", "TruncBackward0",
        "SgnBackward0", "SignBackward0", "AngleBackward0", "ZeroBackward0", "FillBackward0", "FillBackward2",
        // random numbers
        "BernoulliBackward0", "BernoulliBackward1", "BernoulliBackward2", "CauchyBackward0",
        "ExponentialBackward0", "GeometricBackward0", "LogNormalBackward0", "NormalBackward0",
        "NormalBackward1", "NormalBackward2", "NormalBackward3", "PoissonBackward0", "RandomBackward0",
        "RandomBackward1", "RandomBackward2", "UniformBackward0"}) {
    zero(name);
  }

  // ---- piecewise linear -----------------------------------------------------------------------------------
  unary_linear<gen::AbsBackward0>("AbsBackward0", self, [](auto&, const Tensor& x) { return x.sgn(); });
  elementwise_linear<gen::NanToNumBackward0>("NanToNumBackward0", [](auto& n, Local& l) {
    l.first[0] = indicator(l, at::isfinite(l.unpack(n.self_)));
  });
  elementwise_linear<gen::ClampBackward1>("ClampBackward1", [](auto& n, Local& l) {
    const Tensor x = l.unpack(n.self_);
    if (n.min && n.max) {
      l.first[0] = mask(l, at::logical_and(x >= *n.min, x <= *n.max));
    } else {
      l.first[0] = n.min ? mask(l, x >= *n.min) : mask(l, x <= *n.max);
    }
  });
  elementwise_linear<gen::ClampMinBackward0>(
      "ClampMinBackward0", [](auto& n, Local& l) { l.first[0] = mask(l, l.unpack(n.self_) >= n.min); });
  elementwise_linear<gen::ClampMaxBackward0>(
      "ClampMaxBackward0", [](auto& n, Local& l) { l.first[0] = mask(l, l.unpack(n.self_) <= n.max); });
  elementwise_linear<gen::NativeDropoutBackward0>("NativeDropoutBackward0", [](auto& n, Local& l) {
    const double kept = n.train.value_or(false) ? (n.p == 1 ? 0.0 : 1 / (1 - n.p)) : 1.0;
    l.first[0] = times(kept, indicator(l, l.unpack(n.result1_)));
  });

  // ---- powers and roots -----------------------------------------------------------------------------------
  // Whole exponents keep their exact constants: the curvature of x^2 is 2 also at 0, that of x^1 is none.
  elementwise<gen::PowBackward0>(
      "PowBackward0",
      [](auto& n, Local& l) {
        const double p = n.exponent.toDouble();
        if (p == 0 || p == 1) {
          l.first[0] = p;
          return;
        }
        const Tensor x = l.unpack(n.self_);
        l.saved = {x};
        l.first[0] = times(p, power(x, p - 1));
      },
      [](auto& n, Local& l) {
        const double p = n.exponent.toDouble();
        if (p == 0 || p == 1) return;
        const Tensor& x = l.saved[0];
        l.second[0] = p == 2 ? Factor(2.0) : times(p * (p - 1), power(x, p - 2));
      });
  unary<gen::SqrtBackward0>(
      "SqrtBackward0", result, [](auto&, const Tensor& y) { return times(0.5, y.reciprocal()); },
      [](auto&, const Tensor&, const Tensor& r) { return times(-0.25, r.pow(3)); });
  unary<gen::RsqrtBackward0>(
      "RsqrtBackward0", result, [](auto&, const Tensor& y) { return times(-0.5, y.pow(3)); },
      [](auto&, const Tensor& y, const Tensor& y3) { return times(0.75, y3 * y * y); });
  unary<gen::ReciprocalBackward0>(
      "ReciprocalBackward0", result, [](auto&, const Tensor& y) { return times(-1, y * y); },
      [](auto&, const Tensor& y, const Tensor& y2) { return times(2, y2 * y); });

  // ---- exponentials and logarithms ------------------------------------------------------------------------
  unary<gen::ExpBackward0>(
      "ExpBackward0", result, [](auto&, const Tensor& y) { return y; },
      [](auto&, const Tensor& y, const Tensor&) { return y; });
  unary<gen::Exp2Backward0>(
      "Exp2Backward0", result, [](auto&, const Tensor& y) { return times(ln2, y); },
      [](auto&, const Tensor& y, const Tensor&) { return times(ln2 * ln2, y); });
  unary<gen::Expm1Backward0>(
      "Expm1Backward0", result, [](auto&, const Tensor& y) { return y + 1; },
      [](auto&, const Tensor&, const Tensor& d) { return d; });
  unary<gen::LogBackward0>(
      "LogBackward0", self, [](auto&, const Tensor& x) { return x.reciprocal(); },
      [](auto&, const Tensor&, const Tensor& r) { return times(-1, r * r); });
  unary<gen::Log2Backward0>(
      "Log2Backward0", self, [](auto&, const Tensor& x) { return times(1 / ln2, x.reciprocal()); },
      [](auto&, const Tensor&, const Tensor& r) { return times(-1 / ln2, r * r); });
  unary<gen::Log10Backward0>(
      "Log10Backward0", self, [](auto&, const Tensor& x) { return times(1 / ln10, x.reciprocal()); },
      [](auto&, const Tensor&, const Tensor& r) { return times(-1 / ln10, r * r); });
  unary<gen::Log1PBackward0>(
      "Log1PBackward0", self, [](auto&, const Tensor& x) { return (x + 1).reciprocal(); },
      [](auto&, const Tensor&, const Tensor& r) { return times(-1, r * r); });
  elementwise<gen::LogitBackward0>(
      "LogitBackward0",
      [](auto& n, Local& l) {
        const Tensor x = l.unpack(n.self_);
        const double low = n.eps.value_or(0.0),
                     outside = n.eps ? 0.0 : std::numeric_limits<double>::quiet_NaN();
        const Tensor inside = at::logical_and(x >= low, x <= 1 - low);
        l.saved = {x, inside};
        l.first[0] = at::where(inside, (x * at::rsub(x, 1)).reciprocal(), outside);
      },
      [](auto&, Local& l) {
        const Tensor& d = l.first[0].c;
        l.second[0] = at::where(l.saved[1], at::sub(l.saved[0] * 2, 1) * d * d, 0);
      });
  unary<gen::SpecialEntrBackward0>(
      "SpecialEntrBackward0", self, [](auto&, const Tensor& x) { return times(-1, x.log() + 1); },
      [](auto&, const Tensor& x, const Tensor&) { return times(-1, x.reciprocal()); });

  // ---- trigonometric --------------------------------------------------------------------------------------
  unary<gen::SinBackward0>(
      "SinBackward0", self, [](auto&, const Tensor& x) { return x.cos(); },
      [](auto&, const Tensor& x, const Tensor&) { return times(-1, x.sin()); });
  unary<gen::CosBackward0>(
      "CosBackward0", self, [](auto&, const Tensor& x) { return times(-1, x.sin()); },
      [](auto&, const Tensor& x, const Tensor&) { return times(-1, x.cos()); });
  unary<gen::TanBackward0>(
      "TanBackward0", result, [](auto&, const Tensor& y) { return y * y + 1; },
      [](auto&, const Tensor& y, const Tensor& d) { return times(2, y * d); });
  unary<gen::AsinBackward0>(
      "AsinBackward0", self, [](auto&, const Tensor& x) { return at::rsub(x * x, 1).rsqrt(); },
      [](auto&, const Tensor& x, const Tensor& r) { return x * r.pow(3); });
  unary<gen::AcosBackward0>(
      "AcosBackward0", self, [](auto&, const Tensor& x) { return times(-1, at::rsub(x * x, 1).rsqrt()); },
      [](auto&, const Tensor& x, const Tensor& r) { return times(-1, x * r.pow(3)); });
  unary<gen::AtanBackward0>(
      "AtanBackward0", self, [](auto&, const Tensor& x) { return (x * x + 1).reciprocal(); },
      [](auto&, const Tensor& x, const Tensor& d) { return times(-2, x * d * d); });
  unary<gen::SincBackward0>(
      "SincBackward0", self,
      [](auto&, const Tensor& x) { return ((x * pi).cos() - x.sinc()).div(x).masked_fill(x == 0, 0); },
      [](auto&, const Tensor& x, const Tensor& d) { return x.sinc() * (-pi * pi) - d / x * 2; });

  // ---- hyperbolic -----------------------------------------------------------------------------------------
  unary<gen::SinhBackward0>(
      "SinhBackward0", self, [](auto&, const Tensor& x) { return x.cosh(); },
      [](auto&, const Tensor& x, const Tensor&) { return x.sinh(); });
  unary<gen::CoshBackward0>(
      "CoshBackward0", self, [](auto&, const Tensor& x) { return x.sinh(); },
      [](auto&, const Tensor& x, const Tensor&) { return x.cosh(); });
  unary<gen::TanhBackward0>(
      "TanhBackward0", result, [](auto&, const Tensor& y) { return at::rsub(y * y, 1); },
      [](auto&, const Tensor& y, const Tensor& d) { return times(-2, y * d); });
  unary<gen::AsinhBackward0>(
      "AsinhBackward0", self, [](auto&, const Tensor& x) { return (x * x + 1).rsqrt(); },
      [](auto&, const Tensor& x, const Tensor& r) { return times(-1, x * r.pow(3)); });
  unary<gen::AcoshBackward0>(
      "AcoshBackward0", self, [](auto&, const Tensor& x) { return (x * x - 1).rsqrt(); },
      [](auto&, const Tensor& x, const Tensor& r) { return times(-1, x * r.pow(3)); });
  unary<gen::AtanhBackward0>(
      "AtanhBackward0", self, [](auto&, const Tensor& x) { return at::rsub(x * x, 1).reciprocal(); },
      [](auto&, const Tensor& x, const Tensor& d) { return times(2, x * d * d); });

  // ---- error function and normal distribution -------------------------------------------------------------
  unary<gen::ErfBackward0>(
      "ErfBackward0", self,
      [](auto&, const Tensor& x) { return times(2 * inv_sqrt_pi, (x * x).neg().exp()); },
      [](auto&, const Tensor& x, const Tensor& e) { return times(-4 * inv_sqrt_pi, x * e); });
  unary<gen::ErfcBackward0>(
      "ErfcBackward0", self,
      [](auto&, const Tensor& x) { return times(-2 * inv_sqrt_pi, (x * x).neg().exp()); },
      [](auto&, const Tensor& x, const Tensor& e) { return times(4 * inv_sqrt_pi, x * e); });
  unary<gen::ErfinvBackward0>(
      "ErfinvBackward0", [](auto& n, Local& l) { return l.unpack(n.self_).erfinv(); },
      [](auto&, const Tensor& y) { return times(0.5 / inv_sqrt_pi, (y * y).exp()); },
      [](auto&, const Tensor& y, const Tensor& e) { return times(0.5 * pi, y * e * e); });
  elementwise<gen::SpecialErfcxBackward0>(
      "SpecialErfcxBackward0",
      [](auto& n, Local& l) {
        l.saved = {l.unpack(n.self_), l.unpack(n.result_)};
        l.first[0] = times(2, l.saved[0] * l.saved[1] - inv_sqrt_pi);
      },
      [](auto&, Local& l) { l.second[0] = times(2, at::addcmul(l.saved[1], l.saved[0], l.first[0].c, 2)); });
  unary<gen::SpecialNdtriBackward0>(
      "SpecialNdtriBackward0", result,
      [](auto&, const Tensor& y) { return times(sqrt_2pi, (y * y * 0.5).exp()); },
      [](auto&, const Tensor& y, const Tensor& e) { return times(2 * pi, y * e * e); });
  elementwise<gen::SpecialLogNdtrBackward0>(
      "SpecialLogNdtrBackward0",
      [](auto& n, Local& l) {
        const Tensor x = l.unpack(n.self_);
        l.saved = {x};
        l.first[0] = times(1 / sqrt_2pi, at::addcmul(l.unpack(n.result_), x, x, 0.5).neg().exp());
      },
      [](auto&, Local& l) {
        const Tensor& e = l.first[0].c;
        l.second[0] = times(-1 / sqrt_2pi, e * at::add(l.saved[0], e, 1 / sqrt_2pi));
      });

  // ---- gamma ----------------------------------------------------------------------------------------------
  unary<gen::LgammaBackward0>(
      "LgammaBackward0", self, [](auto&, const Tensor& x) { return x.digamma(); },
      [](auto&, const Tensor& x, const Tensor&) { return at::polygamma(1, x); });
  unary<gen::DigammaBackward0>(
      "DigammaBackward0", self, [](auto&, const Tensor& x) { return at::polygamma(1, x); },
      [](auto&, const Tensor& x, const Tensor&) { return at::polygamma(2, x); });
  // In their second argument x, with d = x^(a - 1) exp(-x) / gamma(a); by a there is no derivative.
  const auto igamma1 = [](auto& n, Local& l) {
    const Tensor a = operand(l, n.self_), x = operand(l, n.other_);
    l.saved = {a, x};
    l.first[1] = ((a - 1) * x.log() - x - a.lgamma()).exp();
  };
  const auto igamma2 = [](auto&, Local& l) {
    l.second[3] = l.first[1];
    l.second[3].c = l.first[1].c * ((l.saved[0] - 1) / l.saved[1] - 1);
  };
  in_the_second<gen::IgammaBackward0>("IgammaBackward0", igamma1, igamma2);
  in_the_second<gen::IgammacBackward0>(
      "IgammacBackward0",
      [igamma1](auto& n, Local& l) {
        igamma1(n, l);
        l.first[1].alpha = -1;
      },
      igamma2);
  in_the_second<gen::SpecialZetaBackward0>(
      "SpecialZetaBackward0",
      [](auto& n, Local& l) {
        const Tensor s = operand(l, n.self_), q = operand(l, n.other_);
        l.saved = {s, q};
        l.first[1] = times(-1, s * at::special_zeta(s + 1, q));
      },
      [](auto&, Local& l) {
        const Tensor &s = l.saved[0], &q = l.saved[1];
        l.second[3] = s * (s + 1) * at::special_zeta(s + 2, q);
      });
  unary<gen::SpecialZetaBackward1>(
      "SpecialZetaBackward1", [](auto& n, Local& l) { return l.unpack(n.other_); },
      [](auto& n, const Tensor& q) {
        const double s = n.self.toDouble();
        return times(-s, at::special_zeta(s + 1, q));
      },
      [](auto& n, const Tensor& q, const Tensor&) {
        const double s = n.self.toDouble();
        return times(s * (s + 1), at::special_zeta(s + 2, q));
      });
  const auto polygamma1 = [](auto& n, const Tensor& x) { return at::polygamma(n.n + 1, x); };
  const auto polygamma2 = [](auto& n, const Tensor& x, const Tensor&) { return at::polygamma(n.n + 2, x); };
  unary<gen::PolygammaBackward0>("PolygammaBackward0", self, polygamma1, polygamma2);
  unary<gen::PolygammaBackward1>("PolygammaBackward1", self, polygamma1, polygamma2);
  unary<gen::MvlgammaBackward0>(
      "MvlgammaBackward0",
      [](auto& n, Local& l) {
        const Tensor x = l.unpack(n.self_);
        return x.unsqueeze(-1) + at::arange(0.5 - 0.5 * static_cast<double>(n.p), 0.5, 0.5, x.options());
      },
      [](auto&, const Tensor& x) { return x.digamma().sum(-1); },
      [](auto&, const Tensor& x, const Tensor&) { return at::polygamma(1, x).sum(-1); });

  // ---- modified Bessel functions --------------------------------------------------------------------------
  unary<gen::I0Backward0>(
      "I0Backward0", self, [](auto&, const Tensor& x) { return at::special_i1(x); },
      [](auto&, const Tensor& x, const Tensor& d) { return i1_slope(x, d); });
  elementwise<gen::SpecialI0EBackward0>(
      "SpecialI0EBackward0",
      [](auto& n, Local& l) {
        const Tensor x = l.unpack(n.self_), i1e = at::special_i1e(x), sign = x.sgn();
        l.saved = {x, i1e, sign};
        l.first[0] = i1e - sign * l.unpack(n.result_);
      },
      [](auto&, Local& l) { l.second[0] = i1e_slope(l.saved[0], l.saved[1]) - l.saved[2] * l.first[0].c; });
  elementwise<gen::SpecialI1Backward0>(
      "SpecialI1Backward0",
      [](auto& n, Local& l) {
        l.saved = {l.unpack(n.self_), l.unpack(n.result_)};
        l.first[0] = i1_slope(l.saved[0], l.saved[1]);
      },
      [](auto&, Local& l) {
        const Tensor &y = l.saved[1], &d = l.first[0].c;
        l.second[0] = with_limit(l.saved[0], 0, [&](const Tensor& z) { return y + (y / z - d) / z; });
      });
  elementwise<gen::SpecialI1EBackward0>(
      "SpecialI1EBackward0",
      [](auto& n, Local& l) {
        l.saved = {l.unpack(n.self_), l.unpack(n.result_)};
        l.first[0] = i1e_slope(l.saved[0], l.saved[1]);
      },
      [](auto&, Local& l) {
        const Tensor &y = l.saved[1], &d = l.first[0].c;
        l.second[0] = with_limit(l.saved[0], 0, [&](const Tensor& z) {
          const Tensor r = z.reciprocal(), sign = z.sgn();
          return y - sign * at::special_i0e(z) - d * (sign + r) + y * r * r;
        });
      });

  activations();
}

}  // namespace hesse::rules
