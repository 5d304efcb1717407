// Elementwise functions of several tensors: one row per op, its first and second partials. An input that is
// not active needs no factor: those left alone are structural zeros.
#include "factors.h"

#include <cmath>
#include <limits>
#include <numbers>

namespace hesse::rules {

namespace {

constexpr double ln2 = std::numbers::ln2;

// Sets f_ij = f_ji.
void mixed(Local& l, size_t i, size_t j, const Factor& f) {
  l.second[i * l.inputs() + j] = f;
  l.second[j * l.inputs() + i] = f;
}

bool both(const Local& l, size_t i, size_t j) { return l.active[i] && l.active[j]; }

// x / y. Saves y' = 1 / y, and q = x / y where the derivatives by y want it.
template <class N>
void div_first(N& n, Local& l) {
  const Tensor divisor = l.unpack(n.other_);
  if (const auto c = number(divisor)) {
    l.first[0] = 1 / *c;
    return;
  }
  const Tensor r = operand(l, n.other_).reciprocal();
  l.saved = {r};
  if (l.active[0]) l.first[0] = r;
  if (l.active[1]) {
    l.saved.push_back(operand(l, n.self_) * r);
    l.first[1] = times(-1, l.saved[1] * r);
  }
}

template <class N>
void div_second(N&, Local& l) {
  if (!l.active[1]) return;
  const Tensor& r = l.saved[0];
  if (l.active[0]) mixed(l, 0, 1, times(-1, r * r));
  l.second[3] = times(2, l.first[1].c * r);
}

// max(x, y), min(x, y): half the slope to each at a tie. `less(x, y)` where x is out, `not_more` also at a
// tie; NaN is neither.
template <class Less, class NotMore>
auto extremum(Less less, NotMore not_more) {
  return [less, not_more](auto& n, Local& l) {
    const Tensor x = l.unpack(n.self_), y = l.unpack(n.other_);
    auto share = [&](const Tensor& a, const Tensor& b) {
      return selecting(at::rsub(indicator(l, less(a, b)) + not_more(a, b), 2), 0.5);
    };
    if (l.active[0]) l.first[0] = share(x, y);
    if (l.active[1]) l.first[1] = share(y, x);
  };
}

// fmax, fmin: the whole slope to one of them, to x at a tie and where y is NaN.
template <class Wins>
auto nan_extremum(Wins wins) {
  return [wins](auto& n, Local& l) {
    const Tensor x = l.unpack(n.self_), y = l.unpack(n.other_);
    const Tensor first = indicator(l, at::logical_or(wins(x, y), y.isnan()));
    if (l.active[0]) l.first[0] = selecting(first);
    if (l.active[1]) l.first[1] = selecting(at::rsub(first, 1));
  };
}

}  // namespace

void binary() {
  // ---- linear ---------------------------------------------------------------------------------------------
  elementwise_linear<gen::AddBackward0>("AddBackward0",
                                        [](auto& n, Local& l) { l.first = {1.0, n.alpha.toDouble()}; });
  elementwise_linear<gen::AddBackward1>("AddBackward1", [](auto&, Local& l) { l.first = {1.0}; });
  elementwise_linear<gen::SubBackward0>("SubBackward0",
                                        [](auto& n, Local& l) { l.first = {1.0, -n.alpha.toDouble()}; });
  elementwise_linear<gen::SubBackward1>("SubBackward1", [](auto&, Local& l) { l.first = {1.0}; });
  elementwise_linear<gen::RsubBackward0>("RsubBackward0",
                                         [](auto& n, Local& l) { l.first = {-n.alpha.toDouble(), 1.0}; });
  elementwise_linear<gen::RsubBackward1>("RsubBackward1",
                                         [](auto& n, Local& l) { l.first = {-n.alpha.toDouble()}; });
  elementwise_linear<gen::MulBackward1>("MulBackward1",
                                        [](auto& n, Local& l) { l.first = {n.other.toDouble()}; });
  elementwise_linear<gen::DivBackward1>("DivBackward1",
                                        [](auto& n, Local& l) { l.first = {1 / n.other.toDouble()}; });
  elementwise_linear<gen::DivBackward3>(
      "DivBackward3", [](auto& n, Local& l) { l.first = {n.rounding_mode ? 0.0 : 1 / n.other.toDouble()}; });
  elementwise_linear<gen::LerpBackward0>("LerpBackward0", [](auto& n, Local& l) {
    const double w = n.weight.toDouble();
    l.first = {1 - w, w};
  });
  // In place with a tensor: the old value is gone, every element is the new one.
  elementwise_linear<gen::FillBackward1>("FillBackward1", [](auto&, Local& l) { l.first = {0.0, 1.0}; });
  elementwise_linear<gen::FillBackward3>("FillBackward3", [](auto&, Local& l) { l.first = {0.0, 1.0}; });

  // ---- selection ------------------------------------------------------------------------------------------
  elementwise_linear<gen::WhereBackward0>("WhereBackward0", [](auto& n, Local& l) {
    const Tensor condition = l.unpack(n.condition_);
    if (l.active[0]) l.first[0] = mask(l, condition);
    if (l.active[1]) l.first[1] = mask(l, condition.logical_not());
  });
  elementwise_linear<gen::MaskedFillBackward0>("MaskedFillBackward0", [](auto& n, Local& l) {
    l.first[0] = mask(l, l.unpack(n.mask_).logical_not());
  });
  elementwise_linear<gen::MaskedFillBackward1>("MaskedFillBackward1", [](auto& n, Local& l) {
    const Tensor filled = l.unpack(n.mask_);
    if (l.active[0]) l.first[0] = mask(l, filled.logical_not());
    if (l.active[1]) l.first[1] = mask(l, filled);
  });
  elementwise_linear<gen::MaximumBackward0>(
      "MaximumBackward0", extremum([](const Tensor& a, const Tensor& b) { return a < b; },
                                   [](const Tensor& a, const Tensor& b) { return a <= b; }));
  elementwise_linear<gen::MinimumBackward0>(
      "MinimumBackward0", extremum([](const Tensor& a, const Tensor& b) { return a > b; },
                                   [](const Tensor& a, const Tensor& b) { return a >= b; }));
  elementwise_linear<gen::FmaxBackward0>(
      "FmaxBackward0", nan_extremum([](const Tensor& a, const Tensor& b) { return a >= b; }));
  elementwise_linear<gen::FminBackward0>(
      "FminBackward0", nan_extremum([](const Tensor& a, const Tensor& b) { return a <= b; }));
  elementwise_linear<gen::ClampBackward0>("ClampBackward0", [](auto& n, Local& l) {
    const Tensor x = l.unpack(n.self_), low = l.unpack(n.min_), high = l.unpack(n.max_);
    const bool two = low.defined() && high.defined();
    if (l.active[0]) {
      const Tensor inside = two ? at::logical_and(x >= low, x <= high) : low.defined() ? x >= low : x <= high;
      l.first[0] = mask(l, inside);
    }
    // Where the bounds are crossed the upper one is the value.
    if (l.active[1]) l.first[1] = mask(l, two ? at::logical_and(x < low, low < high) : x < low);
    if (l.active[2]) l.first[2] = mask(l, two ? at::logical_or(x > high, high < low) : x > high);
  });
  elementwise_linear<gen::ClampMinBackward1>("ClampMinBackward1", [](auto& n, Local& l) {
    const Tensor x = l.unpack(n.self_), low = l.unpack(n.min_);
    if (l.active[0]) l.first[0] = mask(l, x >= low);
    if (l.active[1]) l.first[1] = mask(l, x < low);
  });
  elementwise_linear<gen::ClampMaxBackward1>("ClampMaxBackward1", [](auto& n, Local& l) {
    const Tensor x = l.unpack(n.self_), high = l.unpack(n.max_);
    if (l.active[0]) l.first[0] = mask(l, x <= high);
    if (l.active[1]) l.first[1] = mask(l, x > high);
  });

  // ---- piecewise linear -----------------------------------------------------------------------------------
  // x - y floor(x / y), the quotient constant between its jumps.
  elementwise_linear<gen::RemainderBackward0>("RemainderBackward0", [](auto&, Local& l) { l.first = {1.0}; });
  elementwise_linear<gen::RemainderBackward1>("RemainderBackward1", [](auto& n, Local& l) {
    l.first[0] = 1.0;
    if (l.active[1]) l.first[1] = times(-1, at::div(l.unpack(n.self_), l.unpack(n.other_), "floor"));
  });
  elementwise_linear<gen::FmodBackward0>("FmodBackward0", [](auto&, Local& l) { l.first = {1.0}; });
  elementwise_linear<gen::FmodBackward1>("FmodBackward1", [](auto& n, Local& l) {
    l.first[0] = 1.0;
    if (l.active[1]) l.first[1] = times(-1, at::div(l.unpack(n.self_), l.unpack(n.other_), "trunc"));
  });
  since_saved<gen::NextafterBackward0>([]<class N>(std::type_identity<N>) {
    elementwise_linear<N>("NextafterBackward0", [](auto& n, Local& l) {
      if (l.active[0]) l.first[0] = mask(l, l.unpack(n.self_) != l.unpack(n.other_));
    });
  });
  const auto copysign = [](auto& n, Local& l) {
    if (!l.active[0]) return;
    const Tensor x = l.unpack(n.self_);
    l.first[0] = l.unpack(n.result_).div(x).masked_fill(x == 0, 0);
  };
  elementwise_linear<gen::CopysignBackward0>("CopysignBackward0", copysign);
  elementwise_linear<gen::CopysignBackward1>("CopysignBackward1", copysign);

  // ---- products and quotients -----------------------------------------------------------------------------
  elementwise<gen::MulBackward0>(
      "MulBackward0",
      [](auto& n, Local& l) {
        auto factor = [](const Tensor& t) {
          const auto c = number(t);
          return c ? Factor(*c) : Factor(t);
        };
        if (l.active[0]) l.first[0] = factor(l.unpack(n.other_));
        if (l.active[1]) l.first[1] = factor(l.unpack(n.self_));
      },
      [](auto&, Local& l) {
        if (both(l, 0, 1)) mixed(l, 0, 1, 1.0);
      });
  elementwise<gen::DivBackward0>("DivBackward0", div_first<gen::DivBackward0>, div_second<gen::DivBackward0>);
  elementwise<gen::DivBackward2>(
      "DivBackward2",
      [](auto& n, Local& l) {
        if (!n.rounding_mode) div_first(n, l);
      },
      [](auto& n, Local& l) {
        if (!n.rounding_mode) div_second(n, l);
      });
  // s + v a b
  elementwise<gen::AddcmulBackward0>(
      "AddcmulBackward0",
      [](auto& n, Local& l) {
        const double v = n.value.toDouble();
        l.first[0] = 1.0;
        if (l.active[1]) l.first[1] = times(v, l.unpack(n.tensor2_));
        if (l.active[2]) l.first[2] = times(v, l.unpack(n.tensor1_));
      },
      [](auto& n, Local& l) {
        if (both(l, 1, 2)) mixed(l, 1, 2, n.value.toDouble());
      });
  // s + v a / b
  elementwise<gen::AddcdivBackward0>(
      "AddcdivBackward0",
      [](auto& n, Local& l) {
        const double v = n.value.toDouble();
        l.first[0] = 1.0;
        if (!l.active[1] && !l.active[2]) return;
        const Tensor r = operand(l, n.tensor2_).reciprocal();
        l.saved = {r};
        if (l.active[1]) l.first[1] = times(v, r);
        if (l.active[2]) l.first[2] = times(-v, operand(l, n.tensor1_) * r * r);
      },
      [](auto& n, Local& l) {
        if (!l.active[2]) return;
        const double v = n.value.toDouble();
        const Tensor& r = l.saved[0];
        if (l.active[1]) mixed(l, 1, 2, times(-v, r * r));
        l.second[8] = times(2 * v, l.first[2].c * r);
      });
  // s + w (e - s)
  elementwise<gen::LerpBackward1>(
      "LerpBackward1",
      [](auto& n, Local& l) {
        if (l.active[0]) l.first[0] = at::rsub(l.unpack(n.weight_), 1);
        if (l.active[1]) l.first[1] = l.unpack(n.weight_);
        if (l.active[2]) l.first[2] = l.unpack(n.end_) - l.unpack(n.self_);
      },
      [](auto&, Local& l) {
        if (both(l, 0, 2)) mixed(l, 0, 2, -1.0);
        if (both(l, 1, 2)) mixed(l, 1, 2, 1.0);
      });
  // x where x > 0, else w x; at 0, PyTorch takes the slope of the one side, the curvature of the other.
  elementwise<gen::PreluKernelBackward0>(
      "PreluKernelBackward0",
      [](auto& n, Local& l) {
        const Tensor x = l.unpack(n.self_), positive = x > 0;
        l.saved = {x};
        if (l.active[0]) l.first[0] = at::where(positive, 1, l.unpack(n.weight_));
        if (l.active[1]) l.first[1] = at::where(positive, 0, x);
      },
      [](auto&, Local& l) {
        if (both(l, 0, 1)) mixed(l, 0, 1, mask(l, l.saved[0] < 0));
      });

  // ---- powers ---------------------------------------------------------------------------------------------
  // y = x^p. With L = log x, y_x = p x^(p-1), y_p = y L, and likewise once more. Where such a product is 0
  // times infinity it is 0, its limit.
  elementwise<gen::PowBackward1>(
      "PowBackward1",
      [](auto& n, Local& l) {
        const Tensor x = operand(l, n.self_), p = operand(l, n.exponent_);
        l.saved = {x, p, Tensor(), Tensor()};
        if (l.active[0]) {
          l.saved[2] = x.pow(p - 1);
          l.first[0] = (p * l.saved[2]).masked_fill(p == 0, 0);
        }
        if (l.active[1]) {
          l.saved[3] = x.log().masked_fill(at::logical_and(x == 0, p >= 0), 0);
          l.first[1] = l.unpack(n.result_) * l.saved[3];
        }
      },
      [](auto&, Local& l) {
        const Tensor &x = l.saved[0], &p = l.saved[1], &power = l.saved[2], &log = l.saved[3];
        if (l.active[0]) {
          const Tensor weight = p * (p - 1);
          l.second[0] = (weight * x.pow(p - 2)).masked_fill(weight == 0, 0);
        }
        if (l.active[1]) l.second[3] = l.first[1].c * log;
        if (both(l, 0, 1)) {
          const Tensor f = power * at::add(p * x.log(), 1);
          mixed(l, 0, 1, f.masked_fill(at::logical_and(x == 0, p > 1), 0));
        }
      });
  // y = b^x, b a number. 0^x has no slope for x >= 0, an infinite one below.
  elementwise<gen::PowBackward2>(
      "PowBackward2",
      [](auto& n, Local& l) {
        const double base = n.self.toDouble(), log = std::log(base);
        if (base == 0) {
          l.first[0] = at::where(l.unpack(n.exponent_) >= 0, 0, log).to(dtype_of(l));
        } else if (log != 0) {
          l.first[0] = times(log, l.unpack(n.result_));
        }
      },
      [](auto& n, Local& l) {
        const double base = n.self.toDouble(), log = std::log(base);
        if (log != 0) l.second[0] = times(base == 0 ? -1 : log * log, l.first[0].c);
      });

  // ---- angles and lengths ---------------------------------------------------------------------------------
  // atan2(y, x), with c = x / r^2, s = y / r^2, and 0 at the origin.
  elementwise<gen::Atan2Backward0>(
      "Atan2Backward0",
      [](auto& n, Local& l) {
        const Tensor y = operand(l, n.self_), x = operand(l, n.other_);
        const Tensor r2 = at::addcmul(x * x, y, y), r = r2.reciprocal().masked_fill(r2 == 0, 0);
        l.saved = {x * r, y * r};
        if (l.active[0]) l.first[0] = l.saved[0];
        if (l.active[1]) l.first[1] = times(-1, l.saved[1]);
      },
      [](auto&, Local& l) {
        const Tensor &c = l.saved[0], &s = l.saved[1], cs = c * s;
        if (l.active[0]) l.second[0] = times(-2, cs);
        if (l.active[1]) l.second[3] = times(2, cs);
        if (both(l, 0, 1)) mixed(l, 0, 1, at::addcmul(s * s, c, c, -1));
      });
  // h = hypot(x, y), with u = x / h, v = y / h: u^2 + v^2 = 1. Only active inputs are saved.
  elementwise<gen::HypotBackward0>(
      "HypotBackward0",
      [](auto& n, Local& l) {
        const Tensor h = l.unpack(n.result_);
        l.saved = {h};
        if (l.active[0]) l.first[0] = operand(l, n.self_) / h;
        if (l.active[1]) l.first[1] = operand(l, n.other_) / h;
      },
      [](auto&, Local& l) {
        const Tensor &h = l.saved[0], &u = l.first[0].c, &v = l.first[1].c;
        if (both(l, 0, 1)) {
          l.second[0] = v * v / h;
          l.second[3] = u * u / h;
          mixed(l, 0, 1, times(-1, u * v / h));
        } else if (l.active[0]) {
          l.second[0] = at::rsub(u * u, 1) / h;
        } else {
          l.second[3] = at::rsub(v * v, 1) / h;
        }
      });

  // ---- logarithms -----------------------------------------------------------------------------------------
  // x log y and x log(1 + y), 0 where x is 0: `shift` is 0 or 1.
  const auto xlogy1 = [](double shift) {
    return [shift](auto& n, Local& l) {
      const Tensor x = operand(l, n.self_), y = operand(l, n.other_);
      const Tensor z = shift == 0 ? y : y + shift;
      l.saved = {z};
      if (l.active[0]) {
        const Tensor log = shift == 0 ? y.log() : y.log1p();
        l.first[0] = log.masked_fill(at::logical_and(x == 0, z <= 0), 0);
      }
      if (l.active[1]) l.first[1] = x / z;
    };
  };
  const auto xlogy2 = [](auto&, Local& l) {
    if (!l.active[1]) return;
    const Tensor r = l.saved[0].reciprocal();
    if (l.active[0]) mixed(l, 0, 1, r);
    l.second[3] = times(-1, l.first[1].c * r);
  };
  elementwise<gen::XlogyBackward0>("XlogyBackward0", xlogy1(0), xlogy2);
  elementwise<gen::SpecialXlog1PyBackward0>("SpecialXlog1PyBackward0", xlogy1(1), xlogy2);
  // The first argument is a number.
  const auto number_xlogy1 = [](double shift) {
    return [shift](auto& n, Local& l) {
      const Tensor y = l.unpack(n.other_);
      l.first[0] = times(n.self.toDouble(), (shift == 0 ? y : y + shift).reciprocal());
    };
  };
  const auto number_xlogy2 = [](auto& n, Local& l) {
    const Tensor& r = l.first[0].c;
    l.second[0] = times(-n.self.toDouble(), r * r);
  };
  elementwise<gen::XlogyBackward1>("XlogyBackward1", number_xlogy1(0), number_xlogy2);
  elementwise<gen::SpecialXlog1PyBackward1>("SpecialXlog1PyBackward1", number_xlogy1(1), number_xlogy2);
  // The second one is.
  const auto xlog_number = [](double shift) {
    return [shift](auto& n, Local& l) {
      const double y = n.other.toDouble(), log = shift == 0 ? std::log(y) : std::log1p(y);
      if (y > -shift) {
        l.first[0] = log;
      } else {
        const Tensor x = l.unpack(n.self_);
        l.first[0] = at::full_like(x, log).masked_fill(x == 0, 0);
      }
    };
  };
  elementwise_linear<gen::XlogyBackward2>("XlogyBackward2", xlog_number(0));
  elementwise_linear<gen::SpecialXlog1PyBackward2>("SpecialXlog1PyBackward2", xlog_number(1));
  // log(e^x + e^y), or with 2 for e: the slopes are sigmoids of the differences, in units of ln(base).
  const auto logaddexp1 = [](double unit) {
    return [unit](auto& n, Local& l) {
      const Tensor x = l.unpack(n.self_), y = l.unpack(n.other_);
      auto share = [unit](const Tensor& difference) {
        return (unit == 1 ? difference : difference * unit).sigmoid();
      };
      if (l.active[0]) l.first[0] = share(x - y);
      if (l.active[1]) l.first[1] = share(y - x);
    };
  };
  const auto logaddexp2 = [](double unit) {
    return [unit](auto&, Local& l) {
      const Tensor& s = l.active[0] ? l.first[0].c : l.first[1].c;
      const Tensor d = both(l, 0, 1) ? s * l.first[1].c : s * at::rsub(s, 1);
      if (l.active[0]) l.second[0] = times(unit, d);
      if (l.active[1]) l.second[3] = times(unit, d);
      if (both(l, 0, 1)) mixed(l, 0, 1, times(-unit, d));
    };
  };
  // x 2^y
  since_saved<gen::LdexpBackward0>([]<class N>(std::type_identity<N>) {
    elementwise<N>(
        "LdexpBackward0",
        [](auto& n, Local& l) {
          if (l.active[0]) l.first[0] = at::exp2(operand(l, n.other_));
          if (l.active[1]) l.first[1] = times(ln2, l.unpack(n.result_));
        },
        [](auto&, Local& l) {
          if (both(l, 0, 1)) mixed(l, 0, 1, times(ln2, l.first[0].c));
          if (l.active[1]) l.second[3] = times(ln2 * ln2, l.first[1].c);
        });
  });
  elementwise<gen::LogaddexpBackward0>("LogaddexpBackward0", logaddexp1(1), logaddexp2(1));
  elementwise<gen::Logaddexp2Backward0>("Logaddexp2Backward0", logaddexp1(ln2), logaddexp2(ln2));
}

}  // namespace hesse::rules
