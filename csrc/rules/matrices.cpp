#include "matrices.h"

namespace hesse::rules {

namespace {

Tangent plus(Tangent a, Tangent b) {
  if (a.K == 0) return b;
  if (b.K > 0) accumulate(a, std::move(b));
  return a;
}

Tensor plus(const Tensor& a, const Tensor& b) {
  if (!a.defined()) return b;
  return b.defined() ? a + b : a;
}

Tangent left(const Tensor& w, const Tangent& t) { return einsum(t, "bjk", w, "bij", "bik"); }
Tangent right(const Tangent& t, const Tensor& w) { return einsum(t, "bij", w, "bjk", "bik"); }

Tangent transpose(Tangent t) {
  const int64_t m = t.shape[1], n = t.shape[2];
  return take(std::move(t), {{t.shape[0], n, m}, {m * n, 1, n}, 0});
}

Shape broadcast(const Tensor& a, const Shape& b) {
  Shape s = b;
  for (size_t i = 0; i < s.size(); ++i) s[i] = s[i] == 1 ? a.size(static_cast<int64_t>(i)) : s[i];
  return s;
}

Dual summed(const Dual& a, std::initializer_list<int64_t> axes) {
  Dual s;
  if (a.v.defined()) s.v = a.v.sum(c10::IntArrayRef(axes), true);
  if (a.moves()) s.t = sum(a.t, axes, true);
  return s;
}

// The corner that two shapes share, within a matrix of n columns.
Geometry corner(int64_t b, int64_t rows, int64_t columns, int64_t m, int64_t n) {
  return {{b, rows, columns}, {m * n, n, 1}, 0};
}

Dual solved(const Tensor& w, const Tangent& da, const Dual& y, const Tensor& known) {
  Dual z;
  if (known.defined()) {
    z.v = known;
  } else if (y.v.defined()) {
    z.v = at::matmul(w, y.v);
  }
  Tangent t = y.t;
  if (z.v.defined() && da.K > 0) t = plus(std::move(t), scale(right(da, z.v), -1.0));
  if (t.K > 0) z.t = left(w, t);
  return z;
}

}  // namespace

// ---- dual numbers -----------------------------------------------------------------------------------------

Dual operator*(const Dual& a, const Dual& b) {
  Dual y;
  if (a.v.defined() && b.v.defined()) y.v = at::matmul(a.v, b.v);
  if (a.moves() && b.v.defined()) y.t = right(a.t, b.v);
  if (b.moves() && a.v.defined()) y.t = plus(std::move(y.t), left(a.v, b.t));
  return y;
}

Dual operator+(const Dual& a, const Dual& b) { return {plus(a.v, b.v), plus(a.t, b.t)}; }
Dual operator-(const Dual& a, const Dual& b) { return a + (-b); }
Dual operator-(const Dual& a) { return scaled(-1.0, a); }
Dual scaled(double alpha, const Dual& a) {
  return {a.v.defined() ? a.v * alpha : a.v, a.moves() ? scale(a.t, alpha) : Tangent()};
}

Dual transposed(const Dual& a) {
  return {a.v.defined() ? a.v.mT() : a.v, a.moves() ? transpose(a.t) : Tangent()};
}

Dual times(const Dual& a, const Dual& b) {
  Dual y;
  if (a.v.defined() && b.v.defined()) y.v = a.v * b.v;
  if (a.moves() && b.v.defined()) y.t = scale(expand(a.t, broadcast(b.v, a.t.shape)), b.v);
  if (b.moves() && a.v.defined()) {
    y.t = plus(std::move(y.t), scale(expand(b.t, broadcast(a.v, b.t.shape)), a.v));
  }
  return y;
}

Dual row_sums(const Dual& a) { return summed(a, {2}); }
Dual whole_sum(const Dual& a) { return summed(a, {1, 2}); }

Dual leading(const Dual& a, int64_t m, int64_t n) {
  Dual y;
  if (a.v.defined()) y.v = a.v.narrow(1, 0, m).narrow(2, 0, n);
  if (a.moves()) y.t = take(a.t, corner(a.t.shape[0], m, n, a.t.shape[1], a.t.shape[2]));
  return y;
}

Dual padded(const Dual& a, int64_t m, int64_t n) {
  Dual y;
  if (a.v.defined()) y.v = at::constant_pad_nd(a.v, {0, n - a.v.size(2), 0, m - a.v.size(1)});
  if (a.moves()) {
    const int64_t b = a.t.shape[0];
    y.t = put(a.t, corner(b, a.t.shape[1], a.t.shape[2], m, n), {b, m, n});
  }
  return y;
}

Dual solve(const Solver& a, const Dual& y, const Tensor& z) { return solved(a.inverse, a.t, y, z); }
Dual solve_transposed(const Solver& a, const Dual& y, const Tensor& z) {
  return solved(a.inverse.mT(), a.t.K > 0 ? transpose(a.t) : Tangent(), y, z);
}
Dual solve_right(const Dual& y, const Solver& a, const Tensor& z) {
  return transposed(solve_transposed(a, transposed(y), z.defined() ? z.mT() : z));
}
Dual solve_right_transposed(const Dual& y, const Solver& a, const Tensor& z) {
  return transposed(solve(a, transposed(y), z.defined() ? z.mT() : z));
}

// ---- triangles --------------------------------------------------------------------------------------------

namespace {

template <class F>
Dual masked(const Dual& a, F triangle) {
  Dual y;
  if (a.v.defined()) y.v = triangle(a.v);
  if (a.moves()) {
    const auto options = a.t.options.requires_grad(std::nullopt);
    y.t = scale(a.t, triangle(at::ones({1, a.t.shape[1], a.t.shape[2]}, options)));
  }
  return y;
}

}  // namespace

Dual lower(const Dual& a, int64_t diagonal) {
  return masked(a, [diagonal](const Tensor& t) { return t.tril(diagonal); });
}
Dual upper(const Dual& a, int64_t diagonal) {
  return masked(a, [diagonal](const Tensor& t) { return t.triu(diagonal); });
}
Dual half_lower(const Dual& a) {
  return masked(a, [](const Tensor& t) { return (t.tril() + t.tril(-1)) * 0.5; });
}

Tensor identity(const Tensor& like, int64_t m, int64_t n) {
  return at::eye(m, n, like.options().requires_grad(std::nullopt)).unsqueeze(0);
}

Tensor inverse_of(const Tensor& a) { return std::get<0>(at::linalg_inv_ex(a)); }

Tensor triangular_inverse(const Tensor& a, bool is_upper, bool unitriangular) {
  return at::linalg_solve_triangular(a, at::eye(a.size(-1), a.options().requires_grad(std::nullopt)),
                                     is_upper, /*left=*/true, unitriangular);
}

// ---- axes -------------------------------------------------------------------------------------------------

namespace {

Shape with_matrix(const Shape& batch, int64_t m, int64_t n) {
  Shape s = batch;
  s.push_back(m);
  s.push_back(n);
  return s;
}

}  // namespace

Shape batch_of(c10::IntArrayRef shape, size_t axes) {
  return Shape(shape.begin(), shape.end() - static_cast<std::ptrdiff_t>(axes));
}

Tensor stacked(const Local& l, const Tensor& t) {
  const int64_t m = t.size(-2), n = t.size(-1);
  return t.expand(with_matrix(l.batch, m, n)).reshape({numel_of(l.batch), m, n});
}
Tensor stacked_column(const Local& l, const Tensor& t) { return stacked(l, t.unsqueeze(-1)); }

Tangent stacked(const Local& l, Tangent t, Form form) {
  if (form == Form::column) {
    Shape s = t.shape;
    s.push_back(1);
    t = view(std::move(t), s);
  }
  const int64_t m = t.shape[t.shape.size() - 2], n = t.shape.back();
  return view(expand(std::move(t), with_matrix(l.batch, m, n)), {numel_of(l.batch), m, n});
}

Tangent unstacked(const Local& l, Tangent t, Form form) {
  Shape s = l.batch;
  s.push_back(t.shape[1]);
  if (form == Form::matrix) s.push_back(t.shape[2]);
  return view(std::move(t), s);
}

}  // namespace hesse::rules
