// What runs along one axis. Running sums C and elements picked at saved indices are linear. A product, over
// the axis (F = the sum) or running (F = C), is written without dividing by the zeros among its factors: with
//
//     u = 1/x and e = 0 off the zeros, u = 0 and e = 1 on them, z = F e (how many), R the product of the
//     others, c_i = R where z = i, else 0,
//
//     push   dy  = c_0 F(u dx) + c_1 F(e dx)
//     pull   dgx = u F'(c_0 dgy) + e F'(c_1 dgy)
//     curve  dgx = u F'(gy (c_0 U + c_1 E)) + e F'(gy (c_1 U + c_2 E)) - (u^2 F'(gy c_0) + e F'(gy c_2)) dx
//            with U = F(u dx), E = F(e dx).
//
// That holds at x, not around it where a factor is zero. When the Hessian is to be differentiated again, the
// products that leave out one element and two are formed instead.
#include "picks.h"
#include "reduction.h"

namespace hesse::rules {

namespace {

// A value as [outer, n, inner] around an axis.
struct Line {
  Shape in, shape;
  int64_t axis = 0, n = 1;
};

Line line_of(const Local& l, int64_t dim) {
  Line line{l.in_shape[0], {1, 1, 1}};
  if (line.in.empty()) return line;
  line.axis = at::maybe_wrap_dim(dim, static_cast<int64_t>(line.in.size()));
  for (int64_t a = 0; a < static_cast<int64_t>(line.in.size()); ++a) {
    line.shape[a < line.axis ? 0 : a == line.axis ? 1 : 2] *= line.in[a];
  }
  line.n = line.shape[1];
  return line;
}

// C, or its transpose: sums of what comes before an element, or after it, and of the element.
Tangent running_sum(const Tangent& t, const Line& line, bool transpose) {
  if (line.in.empty()) return t;
  constexpr int64_t longest = 256;  // up to here a triangle of ones keeps the ties along the other axes
  if (line.n <= longest) {
    const Tensor triangle = at::ones({line.n, line.n}, t.options).tril();
    return view(einsum(view(t, line.shape), "ojq", triangle, transpose ? "ji" : "ij", "oiq"), line.in);
  }
  auto along = [transpose](const Tensor& rows, const Tensor&) {
    if (!transpose) return rows.cumsum(2);
    Tensor sums = rows.flip(2);  // step by step: no more than two are alive at once
    sums = sums.cumsum(2);
    return sums.flip(2);
  };
  return view(map_axes(view(t, line.shape), {1}, {line.n}, along), line.in);
}

Tensor running_sum_back(const Tensor& t, int64_t axis) {
  return t.dim() == 0 ? t : t.flip(axis).cumsum(axis).flip(axis);
}

void cumsum() {
  using N = gen::CumsumBackward0;
  Rule rule;
  rule.push = [](Local& l, const Tangents& dx) -> Tangents {
    return {running_sum(cast(dx[0], dtype_of(l)), line_of(l, node<N>(l).dim), false)};
  };
  rule.pull = [](Local& l, const Tangents& dgy) -> Tangents {
    return {running_sum(dgy[0], line_of(l, node<N>(l).dim), true)};
  };
  add_rule("CumsumBackward0", std::move(rule));
}

// ---- products -----------------------------------------------------------------------------------------

// x with its axis last: [outer, inner, n].
Tensor axis_last(const Tensor& x, const Line& line) { return x.reshape(line.shape).transpose(1, 2); }

// [..., k] -> [..., j, k]: row j has a one in place of element j.
Tensor without_each(const Tensor& x) {
  const Tensor out = at::eye(x.size(-1), x.options().dtype(at::kBool));
  return at::where(out, at::ones({}, x.options()), x.unsqueeze(-2));
}

// [..., k] -> [..., j]: the product of all but element j, by running products from both ends.
Tensor product_without_each(const Tensor& x) {
  const Tensor one = at::ones_like(x.slice(-1, 0, 1));
  auto before = [&one](const Tensor& t) { return at::cat({one, t.slice(-1, 0, -1)}, -1).cumprod(-1); };
  return before(x) * before(x.flip(-1)).flip(-1);
}

// F over the axes of prod, in values and in tangents.
struct Whole {
  Axes axes;
  Line line;
  template <class N>
  Whole(N& n, const Local& l) : axes(node_axes(n, l)) {
    if (axes.gone.size() == 1) {
      line = line_of(l, axes.gone[0]);
    } else {
      line = {l.in_shape[0], {1, axes.count, 1}, 0, axes.count};
    }
  }
  Tensor product(const Tensor& x) const {
    return axes.gone.size() == 1 ? x.prod(axes.gone[0], true) : x.prod().reshape(axes.kept);
  }
  Tensor sum(const Tensor& x) const { return x.sum(axes.gone, true); }
  Tensor back(const Tensor& y) const { return y; }
  Tangent sum(Tangent t) const { return total(std::move(t), axes); }
  Tangent back(Tangent t) const { return spread(std::move(t), axes); }
  const Shape& shape() const { return axes.kept; }

  Shape results() const { return {line.shape[0], 1, line.shape[2]}; }
  int64_t pairs() const { return numel_of(line.shape) * line.n; }
  // [o, q, j, 1] and [o, q, j, m, 1]: products without j, and without j and m (none for j = m).
  static Tensor without_one(const Tensor& x) { return product_without_each(x).unsqueeze(-1); }
  static Tensor without_two(const Tensor& x) {
    const Tensor rest = at::rsub(at::eye(x.size(-1), x.options()), 1);
    return (product_without_each(without_each(x)) * rest).unsqueeze(-1);
  }
};

// F of cumprod.
struct Running {
  Line line;
  template <class N>
  Running(N& n, const Local& l) : line(line_of(l, n.dim)) {}
  Tensor product(const Tensor& x) const { return x.cumprod(line.axis); }
  Tensor sum(const Tensor& x) const { return x.cumsum(line.axis); }
  Tensor back(const Tensor& y) const { return running_sum_back(y, line.axis); }
  Tangent sum(const Tangent& t) const { return running_sum(t, line, false); }
  Tangent back(const Tangent& t) const { return running_sum(t, line, true); }
  const Shape& shape() const { return line.in; }

  Shape results() const { return line.shape; }
  int64_t pairs() const { return numel_of(line.shape) * line.n * line.n; }
  // [o, q, j, i] and [o, q, j, m, i]: products up to i without j, and without j and m; none where those come
  // later.
  static Tensor without_one(const Tensor& x) { return without_each(x).cumprod(-1).triu(); }
  static Tensor without_two(const Tensor& x) {
    const int64_t n = x.size(-1);
    const Tensor up_to = at::ones({n, n}, x.options()).triu(), rest = at::rsub(at::eye(n, x.options()), 1);
    const Tensor kept = up_to.unsqueeze(1) * up_to * rest.unsqueeze(-1);  // [j, m, i]
    return without_each(without_each(x)).cumprod(-1) * kept;
  }
};

// Differentiable in x once more. saved: the products without one element; bent: sum_i gy_i (those without
// two).
constexpr int64_t most_pairs = int64_t{1} << 24;  // beyond, the node itself is driven

template <class F>
void save_without(Local& l, const F& f, const Tensor& x) {
  l.saved = {F::without_one(axis_last(x, f.line)), axis_last(x, f.line)};
}

template <class F>
Tangents push_without(Local& l, const F& f, const Tangents& dx) {
  const Tangent t = view(cast(dx[0], dtype_of(l)), f.line.shape);
  return {view(einsum(t, "ojq", l.saved[0], "oqji", "oiq"), l.out_shape[0])};
}

template <class F>
Tangents pull_without(Local& l, const F& f, const Tangents& dgy) {
  return {view(einsum(view(dgy[0], f.results()), "oiq", l.saved[0], "oqji", "ojq"), l.in_shape[0])};
}

template <class F>
Tangents curve_without(Local& l, const F& f, const std::vector<Tensor>& gy, const Tangents& dx) {
  if (l.bent.empty()) {
    const Tensor g = gy[0].reshape(f.results()).transpose(1, 2).unsqueeze(-2).unsqueeze(-2);
    l.bent = {(F::without_two(l.saved[1]) * g).sum(-1)};
  }
  const Tangent t = view(cast(dx[0], dtype_of(l)), f.line.shape);
  return {view(einsum(t, "omq", l.bent[0], "oqjm", "ojq"), l.in_shape[0])};
}

// saved: u, e, c_0, c_1, R, z; bent: gy c_0, gy c_1, gy c_2, and the factor of dx in the curve.
template <class N, class F>
void product(const char* name) {
  Rule rule;
  rule.covers = [](Local& l) {
    return !c10::GradMode::is_enabled() || F(node<N>(l), l).pairs() <= most_pairs;
  };
  rule.save = [](Local& l) {
    const F f(node<N>(l), l);
    const Tensor x = operand(l, node<N>(l).self_);
    if (c10::GradMode::is_enabled()) return save_without(l, f, x);
    const Tensor e = (x == 0).to(x.scalar_type()), others = x + e, none = at::zeros({}, x.options());
    const Tensor R = f.product(others), z = f.sum(e);
    l.saved = {others.reciprocal() - e, e, at::where(z == 0, R, none), at::where(z == 1, R, none), R, z};
  };
  rule.push = [](Local& l, const Tangents& dx) -> Tangents {
    const F f(node<N>(l), l);
    if (c10::GradMode::is_enabled()) return push_without(l, f, dx);
    const Tangent t = cast(dx[0], dtype_of(l));
    Tangent dy = scale(f.sum(scale(t, l.saved[0])), l.saved[2]);
    accumulate(dy, scale(f.sum(scale(t, l.saved[1])), l.saved[3]));
    return {view(std::move(dy), l.out_shape[0])};
  };
  rule.pull = [](Local& l, const Tangents& dgy) -> Tangents {
    const F f(node<N>(l), l);
    if (c10::GradMode::is_enabled()) return pull_without(l, f, dgy);
    const Tangent g = view(dgy[0], f.shape());
    Tangent dgx = scale(f.back(scale(g, l.saved[2])), l.saved[0]);
    accumulate(dgx, scale(f.back(scale(g, l.saved[3])), l.saved[1]));
    return {std::move(dgx)};
  };
  rule.curve = [](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) -> Tangents {
    const F f(node<N>(l), l);
    if (c10::GradMode::is_enabled()) return curve_without(l, f, gy, dx);
    const Tensor &u = l.saved[0], &e = l.saved[1];
    if (l.bent.empty()) {
      const Tensor g = gy[0].reshape(f.shape()), none = at::zeros({}, g.options());
      const Tensor g0 = g * l.saved[2], g1 = g * l.saved[3];
      const Tensor g2 = g * at::where(l.saved[5] == 2, l.saved[4], none);
      l.bent = {g0, g1, g2, u * u * f.back(g0) + e * f.back(g2)};
    }
    const Tangent t = cast(dx[0], dtype_of(l));
    const Tangent U = f.sum(scale(t, u)), E = f.sum(scale(t, e));
    Tangent a = scale(U, l.bent[0]), b = scale(U, l.bent[1]);
    accumulate(a, scale(E, l.bent[1]));
    accumulate(b, scale(E, l.bent[2]));
    Tangent dgx = scale(f.back(std::move(a)), u);
    accumulate(dgx, scale(f.back(std::move(b)), e));
    return {minus(std::move(dgx), scale(t, l.bent[3]))};
  };
  add_rule(name, std::move(rule));
}

// ---- logcumsumexp: J_ji = exp(x_i - y_j) for i <= j, curve = J'gy dx - J'(gy J dx) --------------------

void logcumsumexp() {
  using N = gen::LogcumsumexpBackward0;
  constexpr int64_t most = int64_t{1} << 24;  // elements of J; beyond, the node itself is driven
  auto line = [](Local& l) { return line_of(l, node<N>(l).dim); };
  auto forward = [line](Local& l, const Tangent& t) {
    return view(einsum(view(t, line(l).shape), "oiq", l.saved[0], "oqij", "ojq"), l.in_shape[0]);
  };
  auto back = [line](Local& l, const Tangent& t) {
    return view(einsum(view(t, line(l).shape), "ojq", l.saved[0], "oqij", "oiq"), l.in_shape[0]);
  };
  Rule rule;
  rule.covers = [line](Local& l) { return numel_of(line(l).shape) * line(l).n <= most; };
  rule.save = [line](Local& l) {
    const Line at = line(l);
    const Tensor x = l.unpack(node<N>(l).self_).reshape(at.shape).transpose(1, 2).unsqueeze(-1);
    const Tensor y = l.unpack(node<N>(l).result_).reshape(at.shape).transpose(1, 2).unsqueeze(-2);
    const Tensor before = at::ones({at.n, at.n}, x.options().dtype(at::kBool)).tril(-1);
    l.saved = {(x - y).masked_fill(before, -std::numeric_limits<double>::infinity()).exp()};  // [o, q, i, j]
  };
  rule.push = [forward](Local& l, const Tangents& dx) -> Tangents { return {forward(l, dx[0])}; };
  rule.pull = [back](Local& l, const Tangents& dgy) -> Tangents { return {back(l, dgy[0])}; };
  rule.curve = [line, forward, back](Local& l, const std::vector<Tensor>& gy,
                                     const Tangents& dx) -> Tangents {
    if (l.bent.empty()) {
      const Tensor g = gy[0].reshape(line(l).shape).transpose(1, 2).unsqueeze(-2);
      l.bent = {(l.saved[0] * g).sum(-1).transpose(1, 2).reshape(l.in_shape[0])};
    }
    return {minus(scale(dx[0], l.bent[0]), back(l, scale(forward(l, dx[0]), gy[0])))};
  };
  add_rule("LogcumsumexpBackward0", std::move(rule));
}

// ---- sort, topk, cummax: elements picked at saved indices ---------------------------------------------

template <class N>
void picked(const char* name) {
  Rule rule;
  rule.save = [](Local& l) {  // [outer, inner, picked]
    const Line line = line_of(l, node<N>(l).dim);
    const Tensor index = l.unpack(node<N>(l).indices_);
    const int64_t picked = index.dim() == 0 ? 1 : index.size(line.axis);
    l.saved = {index.reshape({line.shape[0], picked, line.shape[2]}).transpose(1, 2)};
  };
  rule.push = [](Local& l, const Tangents& dx) -> Tangents {
    const Line line = line_of(l, node<N>(l).dim);
    const Tensor& index = l.saved[0];
    return {
        view(map_axes(view(dx[0], line.shape), {1}, {index.size(2)}, gather_last, index), l.out_shape[0])};
  };
  rule.pull = [](Local& l, const Tangents& dgy) -> Tangents {
    const Line line = line_of(l, node<N>(l).dim);
    const Tensor& index = l.saved[0];
    const Tangent g = view(dgy[0], {line.shape[0], index.size(2), line.shape[2]});
    return {view(map_axes(g, {1}, {line.n}, scatter_last(line.n), index), line.in)};
  };
  add_rule(name, std::move(rule));
}

}  // namespace

void scans() {
  cumsum();
  product<gen::ProdBackward0, Whole>("ProdBackward0");
  product<gen::ProdBackward1, Whole>("ProdBackward1");
  product<gen::CumprodBackward0, Running>("CumprodBackward0");
  logcumsumexp();
  picked<gen::SortBackward0>("SortBackward0");
  picked<gen::SortBackward1>("SortBackward1");
  picked<gen::TopkBackward0>("TopkBackward0");
  picked<gen::CummaxBackward0>("CummaxBackward0");
  picked<gen::CumminBackward0>("CumminBackward0");
}

}  // namespace hesse::rules
