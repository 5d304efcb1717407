// Reductions over some or all axes of one tensor. Most are y = F(x) with
//
//     push   dy  = sum(f o dx)          f = dy/dx, of x's shape
//     pull   dgx = f o expand(dgy)
//
// and, where f depends on x, a curve of a few verbs.
#include "factors.h"

#include <ATen/WrapDimUtils.h>

#include <limits>

namespace hesse::rules {

namespace {

// Which axes go, and the shape that is left with them kept as size 1.
struct Axes {
  Shape axes, kept;
};

Axes axes_of(const Local& l, c10::ArrayRef<int64_t> dims) {
  const Shape& in = l.in_shape[0];
  const auto rank = static_cast<int64_t>(in.size());
  Axes r;
  r.kept = in;
  std::vector<bool> gone(in.size(), dims.empty());
  for (int64_t d : dims) {
    if (rank > 0) gone[at::maybe_wrap_dim(d, rank)] = true;
  }
  for (int64_t a = 0; a < rank; ++a) {
    if (!gone[a]) continue;
    r.axes.push_back(a);
    r.kept[a] = 1;
  }
  return r;
}

Axes all_axes(const Local& l) { return axes_of(l, {}); }

int64_t count(const Local& l, const Axes& r) {
  int64_t n = 1;
  for (int64_t a : r.axes) n *= l.in_shape[0][a];
  return n;
}

Tangent total(const Local& l, const Axes& r, Tangent t, size_t output = 0) {
  return view(sum(std::move(t), r.axes, false), l.out_shape[output]);
}

Tangent spread(const Local& l, const Axes& r, const Tangent& t) { return expand(view(t, r.kept), l.in_shape[0]); }

// The axes of a node that saved `dim` (a list, a single one, or none).
template <class N>
Axes node_axes(N& n, const Local& l) {
  if constexpr (requires { n.dim.list; }) {
    return n.dim.list ? axes_of(l, *n.dim.list) : all_axes(l);
  } else if constexpr (requires { n.dim.size(); }) {
    return axes_of(l, n.dim);
  } else if constexpr (requires { n.dim.has_value(); }) {
    return n.dim.has_value() ? axes_of(l, {*n.dim}) : all_axes(l);
  } else if constexpr (requires { n.dim; }) {
    return axes_of(l, {n.dim});
  } else {
    return all_axes(l);
  }
}

// slope(node, local, axes) -> f, computed once. Piecewise linear reductions need no more.
template <class N, class F>
Rule linear_reduction(F slope) {
  Rule rule;
  rule.save = [slope](Local& l) { l.first = {slope(node<N>(l), l, node_axes(node<N>(l), l))}; };
  rule.push = [](Local& l, const Tangents& dx) -> Tangents {
    return {total(l, node_axes(node<N>(l), l), scale(cast(dx[0], dtype_of(l)), l.first[0]))};
  };
  rule.pull = [](Local& l, const Tangents& dgy) -> Tangents {
    return {scale(spread(l, node_axes(node<N>(l), l), dgy[0]), l.first[0])};
  };
  return rule;
}

// bend(node, local, axes, gy of the kept shape, dx) -> dgx.
template <class N, class F, class C>
void reduction(const char* name, F slope, C bend) {
  Rule rule = linear_reduction<N>(slope);
  rule.curve = [bend](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) -> Tangents {
    const Axes r = node_axes(node<N>(l), l);
    return {bend(node<N>(l), l, r, gy[0].reshape(r.kept), dx[0])};
  };
  add_rule(name, std::move(rule));
}

template <class N, class F>
void reduction(const char* name, F slope) {
  add_rule(name, linear_reduction<N>(slope));
}

Tangent minus(Tangent a, Tangent b) {
  accumulate(a, scale(std::move(b), -1.0));
  return a;
}

// ---- norms ---------------------------------------------------------------------------------------------------

// y = (sum |x|^p)^(1/p):  f = sign(x) |x|^(p-1) y^(1-p),
// df = (p - 1) (|x|^(p-2) y^(1-p) dx - f / y dy). Zero where y is, as PyTorch's.
Factor norm_slope(Local& l, const Tensor& x, const Tensor& y, double p) {
  l.saved = {x, y};
  if (p == 0) return 0.0;
  if (p == 1) return x.sgn();
  if (p == 2) return (x / y).masked_fill(y == 0, 0);
  if (std::isinf(p)) {
    const Tensor at_max = mask(l, (x.abs() == y) | (x.isnan() & y.isnan()));
    const Tensor ties = at_max.sum_to_size(y.sizes());
    return x.sgn() * at_max / ties;
  }
  const Tensor slope = p < 1    ? (x.sgn() * x.abs().pow(p - 1)).masked_fill(x == 0, 0)
                       : p == 3 ? x * x.abs()
                                : x.sgn() * x.abs().pow(p - 1);
  return (slope * y.pow(1 - p)).masked_fill(y == 0, 0);
}

Tangent norm_bend(Local& l, const Axes& r, const Tensor& gy, const Tangent& dx, double p) {
  if (p == 0 || p == 1 || std::isinf(p)) return zero_like(dx, l.in_shape[0]);
  const Tensor &x = l.saved[0], &y = l.saved[1], &f = l.first[0].c;
  if (l.memo.empty()) {
    const Tensor g = (gy * (p - 1) / y).masked_fill(y == 0, 0);
    // |x|^(p-2) y^(2-p), which is 1 for p = 2.
    const Tensor bow = p == 2 ? Tensor() : (x.abs() / y).pow(p - 2).masked_fill(p < 2 ? x == 0 : y == 0, 0);
    l.memo = {bow.defined() ? g * bow : g, g * f};
  }
  const Tangent dy = expand(sum(scale(dx, f), r.axes, true), l.in_shape[0]);
  return minus(scale(dx, l.memo[0]), scale(dy, l.memo[1]));
}

template <class N, class P>
void norm(const char* name, P order) {
  reduction<N>(
      name,
      [order](auto& n, Local& l, const Axes& r) {
        return norm_slope(l, operand(l, n.self_), l.unpack(n.result_).reshape(r.kept), order(n));
      },
      [order](auto& n, Local& l, const Axes& r, const Tensor& gy, const Tangent& dx) {
        return norm_bend(l, r, gy, dx, order(n));
      });
}

// ---- variance --------------------------------------------------------------------------------------------------

// var = sum (x - m)^2 / c, std = sqrt(var), c = n - correction. Outputs: the spread, then for *_mean the mean.
template <class N>
double freedom(N& n, const Local& l, const Axes& r) {
  const double correction = n.correction ? n.correction->toDouble() : 1.0;
  return std::max(0.0, static_cast<double>(count(l, r)) - correction);
}

template <class N>
void variance(const char* name, bool root, bool with_mean) {
  Rule rule;
  rule.save = [root](Local& l) {
    auto& n = node<N>(l);
    const Axes r = node_axes(n, l);
    const Tensor x = l.unpack(n.self_);
    const Tensor centred = x - x.mean(r.axes, true);
    const double c = freedom(n, l, r);
    if constexpr (requires { n.result_; } || requires { n.result0_; }) {
      Tensor y;
      if constexpr (requires { n.result_; }) {
        y = l.unpack(n.result_);
      } else {
        y = l.unpack(n.result0_);
      }
      y = y.reshape(r.kept);
      l.saved = {y};
      l.first = {Factor((centred / (y * c)).masked_fill(y == 0, 0))};
    } else {
      l.first = {times(2 / c, centred)};
    }
    (void)root;
  };
  rule.push = [with_mean](Local& l, const Tangents& dx) {
    const Axes r = node_axes(node<N>(l), l);
    Tangents dy{total(l, r, scale(dx[0], l.first[0]))};
    if (with_mean) dy.push_back(scale(total(l, r, dx[0], 1), 1.0 / static_cast<double>(count(l, r))));
    return dy;
  };
  rule.pull = [with_mean](Local& l, const Tangents& dgy) -> Tangents {
    const Axes r = node_axes(node<N>(l), l);
    Tangent dgx;
    if (!dgy[0].zero()) dgx = scale(spread(l, r, dgy[0]), l.first[0]);
    if (with_mean && !dgy[1].zero()) {
      Tangent mean = scale(spread(l, r, dgy[1]), 1.0 / static_cast<double>(count(l, r)));
      if (dgx.K == 0) dgx = zero_like(mean, l.in_shape[0]);
      accumulate(dgx, std::move(mean));
    }
    return {std::move(dgx)};
  };
  rule.curve = [root](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) -> Tangents {
    if (!gy[0].defined()) return Tangents(1);
    auto& n = node<N>(l);
    const Axes r = node_axes(n, l);
    const double c = freedom(n, l, r);
    if (l.memo.empty()) {
      const Tensor g = gy[0].reshape(r.kept);
      if (root) {
        const Tensor& y = l.saved[0];
        const Tensor per_y = (g / y).masked_fill(y == 0, 0);
        l.memo = {per_y / c, per_y * l.first[0].c};
      } else {
        l.memo = {g * (2 / c)};
      }
    }
    Tangent mean = scale(expand(sum(dx[0], r.axes, true), l.in_shape[0]), 1.0 / static_cast<double>(count(l, r)));
    Tangent dgx = scale(minus(dx[0], std::move(mean)), l.memo[0]);
    if (root) {
      const Tangent dy = expand(sum(scale(dx[0], l.first[0]), r.axes, true), l.in_shape[0]);
      dgx = minus(std::move(dgx), scale(dy, l.memo[1]));
    }
    return {std::move(dgx)};
  };
  add_rule(name, std::move(rule));
}

// ---- extrema ---------------------------------------------------------------------------------------------------

// All elements equal to the extremum share its gradient.
template <class N>
void shared_extremum(const char* name) {
  reduction<N>(name, [](auto& n, Local& l, const Axes& r) -> Factor {
    const Tensor x = l.unpack(n.self_), y = l.unpack(n.result_).reshape(r.kept);
    const Tensor at = mask(l, (x == y) | (x.isnan() & y.isnan()));
    return at / at.sum(r.axes, true);
  });
}

// The element at the saved index has it all.
template <class N>
void indexed_extremum(const char* name) {
  reduction<N>(name, [](auto& n, Local& l, const Axes& r) -> Factor {
    const auto options = l.out_options[0].requires_grad(std::nullopt);
    if (l.in_shape[0].empty()) return 1.0;
    return at::zeros(l.in_shape[0], options).scatter(r.axes[0], l.unpack(n.indices_).reshape(r.kept), 1);
  });
}

// sort, topk: several elements along the axis.
template <class N>
void gathered(const char* name) {
  Rule rule;
  rule.save = [](Local& l) { l.saved = {l.unpack(node<N>(l).indices_)}; };
  auto along = [](Local& l, const Tensor& rows) {
    Shape size{rows.size(0)};
    size.append(l.saved[0].sizes().begin(), l.saved[0].sizes().end());
    return l.saved[0].unsqueeze(0).expand(size);
  };
  auto axis = [](Local& l) {
    return l.in_shape[0].empty() ? 0 : at::maybe_wrap_dim(node<N>(l).dim, static_cast<int64_t>(l.in_shape[0].size())) + 1;
  };
  rule.push = [along, axis](Local& l, const Tangents& dx) -> Tangents {
    if (l.in_shape[0].empty()) return {dx[0]};
    return {map_rows(dx[0], l.out_shape[0], [&](const Tensor& rows) { return rows.gather(axis(l), along(l, rows)); })};
  };
  rule.pull = [along, axis](Local& l, const Tangents& dgy) -> Tangents {
    if (l.in_shape[0].empty()) return {dgy[0]};
    return {map_rows(dgy[0], l.in_shape[0], [&](const Tensor& rows) {
      Shape size{rows.size(0)};
      size.append(l.in_shape[0].begin(), l.in_shape[0].end());
      return at::zeros(size, rows.options()).scatter_add(axis(l), along(l, rows), rows);
    })};
  };
  add_rule(name, std::move(rule));
}

// ---- products along one axis -----------------------------------------------------------------------------------

// A value as [outer, n, inner] around one axis.
struct Line {
  Shape shape;
  int64_t n;
};

Line line_of(const Local& l, const Axes& r) {
  if (r.axes.size() != 1) return {{1, numel_of(l.in_shape[0]), 1}, numel_of(l.in_shape[0])};
  Line line{{1, l.in_shape[0][r.axes[0]], 1}, l.in_shape[0][r.axes[0]]};
  for (int64_t a = 0; a < static_cast<int64_t>(l.in_shape[0].size()); ++a) {
    if (a != r.axes[0]) line.shape[a < r.axes[0] ? 0 : 2] *= l.in_shape[0][a];
  }
  return line;
}

// Products of all but one and of all but two elements, exact with zeros: running products from both ends.
//   first[o, i, q]     = prod_{k != i} x_k
//   second[o, q, i, j] = prod_{k != i, j} x_k, zero for i == j
Tensor exclusive_left(const Tensor& x, int64_t dim) {
  const Tensor ones = at::ones_like(x.slice(dim, 0, 1));
  return at::cumprod(at::cat({ones, x.slice(dim, 0, x.size(dim) - 1)}, dim), dim);
}

template <class N>
void prod(const char* name) {
  constexpr int64_t longest = 1024;  // beyond, the matrix of pairs is left to autograd
  Rule rule;
  rule.save = [](Local& l) {
    auto& n = node<N>(l);
    const Line line = line_of(l, node_axes(n, l));
    const Tensor x = operand(l, n.self_).reshape(line.shape);
    if (line.n == 0) {
      l.first = {Factor(1.0)};
      return;
    }
    const Tensor left = exclusive_left(x, 1), right = exclusive_left(x.flip(1), 1).flip(1);
    l.saved = {x, left, right};
    l.first = {(left * right).reshape(l.in_shape[0])};
  };
  Rule plain = linear_reduction<N>([](auto&, Local&, const Axes&) { return Factor(1.0); });
  rule.push = plain.push;
  rule.pull = plain.pull;
  rule.curve = [](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) -> Tangents {
    const Line line = line_of(l, node_axes(node<N>(l), l));
    if (line.n > longest) return autograd_rule().curve(l, gy, dx);
    if (line.n < 2) return Tangents(1);
    if (l.memo.empty()) {
      const Tensor x = l.saved[0].transpose(1, 2), left = l.saved[1].transpose(1, 2), right = l.saved[2].transpose(1, 2);
      // between[i, j] = prod_{i < k < j} x_k, as a running product along j that starts after i.
      const Tensor after = at::ones({line.n, line.n}, x.options()).triu(1);
      const Tensor rows = at::where(after.to(at::kBool), x.unsqueeze(-2), at::ones({}, x.options()));
      const Tensor between = exclusive_left(rows, -1);
      const Tensor upper = left.unsqueeze(-1) * between * right.unsqueeze(-2) * after;
      const Tensor g = gy[0].reshape({line.shape[0], line.shape[2], 1, 1});
      l.memo = {(upper + upper.transpose(-1, -2)) * g};
    }
    return {view(einsum(view(dx[0], line.shape), "ojq", l.memo[0], "oqij", "oiq"), l.in_shape[0])};
  };
  add_rule(name, std::move(rule));
}

// ---- running sums and products ---------------------------------------------------------------------------------

void cumsum() {
  using N = gen::CumsumBackward0;
  auto run = [](Local& l, const Tangent& t, bool back) -> Tangents {
    if (l.in_shape[0].empty()) return {t};
    const Axes r = axes_of(l, {node<N>(l).dim});
    const Line line = line_of(l, r);
    constexpr int64_t longest = 256;  // a triangle of ones keeps the ties of the other axes
    if (line.n <= longest) {
      if (l.memo.empty()) l.memo = {at::ones({line.n, line.n}, l.out_options[0].requires_grad(std::nullopt)).tril()};
      return {view(einsum(view(t, line.shape), "ojq", l.memo[0], back ? "ji" : "ij", "oiq"), l.in_shape[0])};
    }
    const int64_t dim = r.axes[0] + 1;
    return {map_rows(t, l.in_shape[0], [&](const Tensor& rows) {
      return back ? at::cumsum(rows.flip(dim), dim).flip(dim) : at::cumsum(rows, dim);
    })};
  };
  Rule rule;
  rule.push = [run](Local& l, const Tangents& dx) { return run(l, cast(dx[0], dtype_of(l)), false); };
  rule.pull = [run](Local& l, const Tangents& dgy) { return run(l, dgy[0], true); };
  add_rule("CumsumBackward0", std::move(rule));
}

// y_i = prod_{k <= i} x_k: partials by running products in which the elements derived by are left out.
void cumprod() {
  using N = gen::CumprodBackward0;
  auto line = [](Local& l) { return line_of(l, axes_of(l, {node<N>(l).dim})); };
  auto small = [line](Local& l) {
    constexpr int64_t most = int64_t{1} << 22;
    const Line at = line(l);
    return !l.in_shape[0].empty() && numel_of(at.shape) * at.n * at.n <= most;
  };
  Rule rule;
  rule.save = [line, small](Local& l) {
    if (!small(l)) return;
    const Line at = line(l);
    const Tensor x = operand(l, node<N>(l).self_).reshape(at.shape).transpose(1, 2);  // [o, q, k]
    const Tensor eye = at::eye(at.n, x.options()).to(at::kBool), one = at::ones({}, x.options());
    const Tensor without = at::where(eye, one, x.unsqueeze(-2));                             // [o, q, j, k]
    l.saved = {without, at::cumprod(without, -1) * at::ones({at.n, at.n}, x.options()).triu()};  // [o, q, j, i]
  };
  rule.push = [line, small](Local& l, const Tangents& dx) -> Tangents {
    if (!small(l)) return autograd_rule().push(l, dx);
    return {view(einsum(view(cast(dx[0], dtype_of(l)), line(l).shape), "ojq", l.saved[1], "oqji", "oiq"), l.in_shape[0])};
  };
  rule.pull = [line, small](Local& l, const Tangents& dgy) -> Tangents {
    if (!small(l)) return autograd_rule().pull(l, dgy);
    return {view(einsum(view(dgy[0], line(l).shape), "oiq", l.saved[1], "oqji", "ojq"), l.in_shape[0])};
  };
  rule.curve = [line, small](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) -> Tangents {
    if (!small(l)) return autograd_rule().curve(l, gy, dx);
    const Line at = line(l);
    if (l.memo.empty()) {
      const Tensor& without = l.saved[0];
      const Tensor one = at::ones({}, without.options());
      const Tensor eye = at::eye(at.n, without.options()).to(at::kBool);
      const Tensor pairs = at::cumprod(at::where(eye.unsqueeze(0), one, without.unsqueeze(-2)), -1);  // [o, q, j, m, i]
      const Tensor g = gy[0].reshape(at.shape).transpose(1, 2).unsqueeze(-2).unsqueeze(-2);
      const Tensor later = at::ones({at.n, at.n}, without.options()).triu();
      const Tensor valid = later.unsqueeze(0) * later.unsqueeze(1) * at::rsub(eye.to(without.scalar_type()), 1).unsqueeze(-1);
      l.memo = {(pairs * valid * g).sum(-1)};
    }
    return {view(einsum(view(cast(dx[0], dtype_of(l)), at.shape), "omq", l.memo[0], "oqjm", "ojq"), l.in_shape[0])};
  };
  add_rule("CumprodBackward0", std::move(rule));
}

}  // namespace

void reductions() {
  // ---- sums ------------------------------------------------------------------------------------------------
  const auto one = [](auto&, Local&, const Axes&) { return Factor(1.0); };
  const auto share = [](auto&, Local& l, const Axes& r) { return Factor(1.0 / static_cast<double>(count(l, r))); };
  reduction<gen::SumBackward0>("SumBackward0", one);
  reduction<gen::SumBackward1>("SumBackward1", one);
  reduction<gen::MeanBackward0>("MeanBackward0", share);
  reduction<gen::MeanBackward1>("MeanBackward1", share);
  cumsum();

  // ---- norms, variance ---------------------------------------------------------------------------------------
  norm<gen::NormBackward0>("NormBackward0", [](auto& n) { return n.p.toDouble(); });
  norm<gen::NormBackward1>("NormBackward1", [](auto& n) { return n.p ? n.p->toDouble() : 2.0; });
  norm<gen::LinalgVectorNormBackward0>("LinalgVectorNormBackward0", [](auto& n) { return n.ord.toDouble(); });
  variance<gen::VarBackward0>("VarBackward0", false, false);
  variance<gen::StdBackward0>("StdBackward0", true, false);
  variance<gen::VarMeanBackward0>("VarMeanBackward0", false, true);
  variance<gen::StdMeanBackward0>("StdMeanBackward0", true, true);

  // ---- log-sum-exp: f = softmax(x), df = f o (dx - sum(f o dx)) ------------------------------------------------
  reduction<gen::LogsumexpBackward0>(
      "LogsumexpBackward0",
      [](auto& n, Local& l, const Axes& r) -> Factor {
        const Tensor y = l.unpack(n.result_).reshape(r.kept);
        return (operand(l, n.self_) - y.masked_fill(y.abs() == std::numeric_limits<double>::infinity(), 0)).exp();
      },
      [](auto&, Local& l, const Axes& r, const Tensor& gy, const Tangent& dx) {
        const Tensor& f = l.first[0].c;
        if (l.memo.empty()) l.memo = {gy * f};
        return scale(minus(dx, expand(sum(scale(dx, f), r.axes, true), l.in_shape[0])), l.memo[0]);
      });

  // ---- extrema and order statistics ----------------------------------------------------------------------------
  shared_extremum<gen::MaxBackward1>("MaxBackward1");
  shared_extremum<gen::MinBackward1>("MinBackward1");
  shared_extremum<gen::AmaxBackward0>("AmaxBackward0");
  shared_extremum<gen::AminBackward0>("AminBackward0");
  indexed_extremum<gen::MaxBackward0>("MaxBackward0");
  indexed_extremum<gen::MinBackward0>("MinBackward0");
  indexed_extremum<gen::KthvalueBackward0>("KthvalueBackward0");
  indexed_extremum<gen::MedianBackward1>("MedianBackward1");
  indexed_extremum<gen::ModeBackward0>("ModeBackward0");
  gathered<gen::SortBackward0>("SortBackward0");
  gathered<gen::SortBackward1>("SortBackward1");
  gathered<gen::TopkBackward0>("TopkBackward0");

  // ---- products ------------------------------------------------------------------------------------------------
  prod<gen::ProdBackward0>("ProdBackward0");
  prod<gen::ProdBackward1>("ProdBackward1");
  cumprod();
}

}  // namespace hesse::rules
