// Reductions over some or all axes of one tensor (see reduction.h). Where y bends it is by a diagonal plus a
// matrix of rank one, in the factor f = dy/dx:
//
//     var        f = 2 (x - m) / c                curve = gy 2/c (dx - mean(dx))
//     std        f = (x - m) / (c y)              curve = gy/y ((dx - mean(dx)) / c - f sum(f dx))
//     norm p     f = sign(x) |x|^(p-1) y^(1-p)    curve = gy (p-1) (|x|^(p-2) y^(1-p) dx - f/y sum(f dx))
//     logsumexp  f = exp(x - y)                   curve = gy f (dx - sum(f dx))
#include "reduction.h"

#include <cmath>
#include <limits>

namespace hesse::rules {

namespace {

// ---- norms --------------------------------------------------------------------------------------------

bool bends(double p) { return p != 0 && p != 1 && !std::isinf(p); }

// Where y vanishes there is no derivative; PyTorch's convention is that f is zero.
Factor norm_slope(const Tensor& x, const Tensor& y, double p, const Axes& a) {
  if (p == 0) return 0.0;
  if (p == 1) return x.sgn();
  if (p == 2) return (x / y).masked_fill(y == 0, 0);
  const Tensor size = x.abs();
  if (std::isinf(p)) {
    const Tensor at = (size.eq(y)).logical_or(size.isnan()).to(x.scalar_type());
    return x.sgn() * at / at.sum(a.gone, true);
  }
  if (p < 1) return x.sgn() * size.pow(p - 1).masked_fill(x == 0, 0) * y.pow(1 - p);
  return x.sgn() * size.pow(p - 1) * y.pow(1 - p).masked_fill(y == 0, 0);
}

// saved: x, y of the kept shape.
Tangent norm_bend(Local& l, double p, const Axes& a, const Tensor& gy, const Tangent& dx) {
  if (!bends(p)) return zero_like(dx, a.in);
  const Tensor &x = l.saved[0], &y = l.saved[1], &f = l.first[0].c;
  if (l.bent.empty()) {
    // From p = 3 on the curvature at y = 0 is zero by the same convention; below it is infinite, and stays
    // so.
    Tensor g = gy * (p - 1) / y;
    if (p >= 3) g = g.masked_fill(y == 0, 0);
    Tensor d = g;
    if (p != 2) {
      d = x.abs().pow(p - 2) * y.pow(1 - p);
      if (p >= 3) d = d.masked_fill(y == 0, 0);
      d = d * (gy * (p - 1));
    }
    l.bent = {d, g * f};
  }
  return minus(scale(dx, l.bent[0]), scale(spread(total(scale(dx, f), a), a), l.bent[1]));
}

double order(const at::Scalar& p) { return p.toDouble(); }
double order(const std::optional<at::Scalar>& p) { return p ? p->toDouble() : 2.0; }

template <class N>
double order_of(N& n) {
  if constexpr (requires { n.ord; }) {
    return order(n.ord);
  } else {
    return order(n.p);
  }
}

template <class N>
void norm(const char* name) {
  reduction<N>(
      name,
      [](auto& n, Local& l, const Axes& a) {
        l.saved = {operand(l, n.self_), l.unpack(n.result_).reshape(a.kept)};
        return norm_slope(l.saved[0], l.saved[1], order_of(n), a);
      },
      [](auto& n, Local& l, const Axes& a, const Tensor& gy, const Tangent& dx) {
        return norm_bend(l, order_of(n), a, gy, dx);
      });
}

// The norm of a difference, x - z.
void dist() {
  using N = gen::DistBackward0;
  auto difference = [](Local& l, const Tangents& dx) {
    const Axes all = axes_of(Shape(l.saved[0].sizes().begin(), l.saved[0].sizes().end()), {});
    Tangent d;
    for (size_t i = 0; i < 2; ++i) {
      if (dx[i].zero()) continue;
      Tangent t = expand(scale(dx[i], i == 0 ? 1.0 : -1.0), all.in);
      if (d.K == 0) {
        d = std::move(t);
      } else {
        accumulate(d, std::move(t));
      }
    }
    return std::make_pair(std::move(d), all);
  };
  auto part = [](Local& l, const Tangent& g) {
    Tangents dgx(2);
    for (size_t i = 0; i < 2; ++i) {
      if (l.wanted[i]) dgx[i] = scale(sum_to(g, l.in_shape[i]), i == 0 ? 1.0 : -1.0);
    }
    return dgx;
  };
  Rule rule;
  rule.save = [](Local& l) {
    auto& n = node<N>(l);
    const Tensor d = l.unpack(n.self_) - l.unpack(n.other_);
    const Axes all = axes_of(Shape(d.sizes().begin(), d.sizes().end()), {});
    l.saved = {d, l.unpack(n.result_).reshape(all.kept)};
    l.first = {norm_slope(l.saved[0], l.saved[1], order(n.p), all)};
  };
  rule.push = [difference](Local& l, const Tangents& dx) {
    const auto [d, all] = difference(l, dx);
    return reduction_push(l, all, {d});
  };
  rule.pull = [part](Local& l, const Tangents& dgy) {
    if (l.first[0].zero()) return Tangents(2);
    const Axes all = axes_of(Shape(l.saved[0].sizes().begin(), l.saved[0].sizes().end()), {});
    return part(l, reduction_pull(l, all, dgy)[0]);
  };
  rule.curve = [difference, part](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
    const auto [d, all] = difference(l, dx);
    return part(l, norm_bend(l, order(node<N>(l).p), all, gy[0].reshape(all.kept), d));
  };
  add_rule("DistBackward0", std::move(rule));
}

// ---- variance -----------------------------------------------------------------------------------------

template <class N>
double freedom(N& n, const Axes& a) {
  return static_cast<double>(a.count) - (n.correction ? n.correction->toDouble() : 1.0);
}

Factor share(const Axes& a) { return 1.0 / static_cast<double>(a.count); }

// dx - mean(dx)
Tangent centred(const Tangent& dx, const Axes& a) {
  return minus(dx, scale(spread(total(dx, a), a), share(a)));
}

template <class N>
Factor var_slope(N& n, Local& l, const Axes& a) {
  const Tensor x = l.unpack(n.self_), d = x - x.mean(a.gone, true);
  const double c = freedom(n, a);
  if (c > 0) return times(2 / c, d);
  const double inf = std::numeric_limits<double>::infinity();
  return at::where(d == 0, at::full({}, std::nan(""), d.options()), at::full({}, inf, d.options()));
}

const auto var_bend = [](auto& n, Local&, const Axes& a, const Tensor& gy, const Tangent& dx) {
  const double c = freedom(n, a);
  if (c <= 0) return zero_like(dx, a.in);
  return scale(scale(centred(dx, a), gy), 2 / c);
};

// saved: 1 / y, zero where y is.
template <class N>
Factor std_slope(N& n, Local& l, const Tensor& y, const Axes& a) {
  const Tensor x = l.unpack(n.self_);
  l.saved = {y.reshape(a.kept).reciprocal().masked_fill(y.reshape(a.kept) == 0, 0)};
  return times(1 / std::max(0.0, freedom(n, a)), (x - x.mean(a.gone, true)) * l.saved[0]);
}

const auto std_bend = [](auto& n, Local& l, const Axes& a, const Tensor& gy, const Tangent& dx) {
  const Factor& f = l.first[0];
  if (l.bent.empty()) {
    const Tensor g = gy * l.saved[0];
    l.bent = {g, g * f.c};
  }
  Tangent t = scale(scale(centred(dx, a), l.bent[0]), 1 / std::max(0.0, freedom(n, a)));
  return minus(std::move(t), scale(scale(spread(total(scale(dx, f), a), a), l.bent[1]), f.alpha));
};

// ---- extrema ------------------------------------------------------------------------------------------

// All elements that equal the extremum share its gradient evenly.
Factor tied(const Tensor& x, const Tensor& y, const Axes& a) {
  const Tensor at = (x == y).to(x.scalar_type());
  return at / at.sum(a.gone, true);
}

template <class N>
void extremum(const char* name) {
  reduction<N>(name, [](auto& n, Local& l, const Axes& a) {
    return tied(l.unpack(n.self_), l.unpack(n.result_).reshape(a.kept), a);
  });
}

// Over all axes; here a NaN is equal to itself.
template <class N>
void overall_extremum(const char* name) {
  reduction<N>(name, [](auto& n, Local& l, const Axes& a) -> Factor {
    const Tensor x = l.unpack(n.self_), y = l.unpack(n.result_);
    const Tensor at = (x == y).logical_or(x.isnan().logical_and(y.isnan())).to(x.scalar_type());
    return at / at.sum(a.gone, true);
  });
}

// The element at the saved index.
template <class N>
void indexed(const char* name) {
  reduction<N>(name, [](auto& n, Local& l, const Axes& a) -> Factor {
    if (a.in.empty()) return 1.0;
    const auto options = l.out_options[0].requires_grad(std::nullopt);
    return selecting(at::zeros(a.in, options).scatter(a.gone[0], l.unpack(n.indices_).reshape(a.kept), 1));
  });
}

}  // namespace

void reductions() {
  // ---- sums -------------------------------------------------------------------------------------------
  const auto one = [](auto&, Local&, const Axes&) { return Factor(1.0); };
  const auto even = [](auto&, Local&, const Axes& a) { return share(a); };
  reduction<gen::SumBackward0>("SumBackward0", one);
  reduction<gen::SumBackward1>("SumBackward1", one);
  reduction<gen::MeanBackward0>("MeanBackward0", even);
  reduction<gen::MeanBackward1>("MeanBackward1", even);
  reduction<gen::NansumBackward0>("NansumBackward0", [](auto& n, Local& l, const Axes&) -> Factor {
    return l.unpack(n.self_).isnan().logical_not().to(dtype_of(l));
  });
  reduction<gen::TraceBackward0>("TraceBackward0", [](auto&, Local& l, const Axes& a) -> Factor {
    return at::eye(a.in[0], a.in[1], l.out_options[0].requires_grad(std::nullopt));
  });
  reduction<gen::LogsumexpBackward0>(
      "LogsumexpBackward0",
      [](auto& n, Local& l, const Axes& a) -> Factor {
        return (operand(l, n.self_) - l.unpack(n.result_).reshape(a.kept)).exp();
      },
      [](auto&, Local& l, const Axes& a, const Tensor& gy, const Tangent& dx) {
        const Tensor& f = l.first[0].c;
        if (l.bent.empty()) l.bent = {gy * f};
        return scale(minus(dx, spread(total(scale(dx, f), a), a)), l.bent[0]);
      });

  // ---- norms, variance --------------------------------------------------------------------------------
  norm<gen::NormBackward0>("NormBackward0");
  norm<gen::NormBackward1>("NormBackward1");
  norm<gen::NormBackward2>("NormBackward2");
  norm<gen::NormBackward3>("NormBackward3");
  norm<gen::LinalgVectorNormBackward0>("LinalgVectorNormBackward0");
  dist();
  reduction<gen::VarBackward0>(
      "VarBackward0", [](auto& n, Local& l, const Axes& a) { return var_slope(n, l, a); }, var_bend);
  reduction<gen::VarMeanBackward0>(
      "VarMeanBackward0",
      [](auto& n, Local& l, const Axes& a) { return std::vector<Factor>{var_slope(n, l, a), share(a)}; },
      var_bend);
  reduction<gen::StdBackward0>(
      "StdBackward0",
      [](auto& n, Local& l, const Axes& a) { return std_slope(n, l, l.unpack(n.result_), a); }, std_bend);
  reduction<gen::StdMeanBackward0>(
      "StdMeanBackward0",
      [](auto& n, Local& l, const Axes& a) {
        return std::vector<Factor>{std_slope(n, l, l.unpack(n.result0_), a), share(a)};
      },
      std_bend);

  // ---- extrema and order statistics -------------------------------------------------------------------
  overall_extremum<gen::MaxBackward1>("MaxBackward1");
  overall_extremum<gen::MinBackward1>("MinBackward1");
  overall_extremum<gen::MedianBackward0>("MedianBackward0");
  overall_extremum<gen::NanmedianBackward0>("NanmedianBackward0");
  extremum<gen::AmaxBackward0>("AmaxBackward0");
  extremum<gen::AminBackward0>("AminBackward0");
  since_saved<gen::AminmaxBackward0>([]<class N>(std::type_identity<N>) {
    reduction<N>("AminmaxBackward0", [](auto& n, Local& l, const Axes& a) {
      const Tensor x = l.unpack(n.self_);
      return std::vector<Factor>{tied(x, l.unpack(n.min_).reshape(a.kept), a),
                                 tied(x, l.unpack(n.max_).reshape(a.kept), a)};
    });
  });
  indexed<gen::MaxBackward0>("MaxBackward0");
  indexed<gen::MinBackward0>("MinBackward0");
  indexed<gen::MedianBackward1>("MedianBackward1");
  indexed<gen::NanmedianBackward1>("NanmedianBackward1");
  indexed<gen::KthvalueBackward0>("KthvalueBackward0");
  indexed<gen::ModeBackward0>("ModeBackward0");

  scans();
}

}  // namespace hesse::rules
