// Functions of matrices, in dual numbers: a value [B, m, n] with its tangent. A rule is two formulas,
//
//     ahead   what was saved, moved by dx (outputs first)
//     back    gx from what was saved and from gy
//
// and all three maps come of them: push is the tangent of `ahead`; pull is that of `back` where gy alone
// moves, curve where gy stays and what was saved moves.
#pragma once

#include "elementwise.h"

#include <ATen/ATen.h>

namespace hesse::rules {

// Without v: zero, or (where only t is asked for) a value that nothing will need. Without t: constant.
struct Dual {
  Tensor v;
  Tangent t;
  Dual() = default;
  Dual(Tensor value) : v(std::move(value)) {}  // NOLINT: formulas read better without a cast
  Dual(Tensor value, Tangent tangent) : v(std::move(value)), t(std::move(tangent)) {}
  bool moves() const { return t.K > 0 && !t.zero(); }
  bool absent() const { return !v.defined() && !moves(); }
};
using Duals = std::vector<Dual>;

Dual operator*(const Dual& a, const Dual& b);  // the matrix product
Dual operator+(const Dual& a, const Dual& b);
Dual operator-(const Dual& a, const Dual& b);
Dual operator-(const Dual& a);
Dual scaled(double alpha, const Dual& a);
Dual transposed(const Dual& a);
// Element by element, with broadcasting.
Dual times(const Dual& a, const Dual& b);
// Sum over each row: [B, m, 1]; over the matrix: [B, 1, 1].
Dual row_sums(const Dual& a);
Dual whole_sum(const Dual& a);
// The leading part of a matrix; and a matrix with zeros added on.
Dual leading(const Dual& a, int64_t m, int64_t n);
Dual padded(const Dual& a, int64_t m, int64_t n);

// A matrix that is solved with: the value of its inverse, and the tangent of itself.
//     z = A^-1 y        dz = A^-1 (dy - dA z)
struct Solver {
  Tensor inverse;
  Tangent t;
};
// Where the value of z is known it need not be formed.
Dual solve(const Solver& a, const Dual& y, const Tensor& z = {});             // A^-1 y
Dual solve_transposed(const Solver& a, const Dual& y, const Tensor& z = {});  // A^-T y
Dual solve_right(const Dual& y, const Solver& a, const Tensor& z = {});       // y A^-1
Dual solve_right_transposed(const Dual& y, const Solver& a, const Tensor& z = {});

// Triangles from a diagonal on; and the lower one with half its diagonal.
Dual lower(const Dual& a, int64_t diagonal = 0);
Dual upper(const Dual& a, int64_t diagonal = 0);
Dual half_lower(const Dual& a);
Tensor identity(const Tensor& like, int64_t m, int64_t n);  // [1, m, n]
inline Tensor identity(const Tensor& like) { return identity(like, like.size(-2), like.size(-1)); }
// A^-1 where A has one; no check.
Tensor inverse_of(const Tensor& a);
Tensor triangular_inverse(const Tensor& a, bool upper, bool unitriangular);

// ---- between the axes of a value and [B, m, n] ------------------------------------------------------------

// What comes before the last `axes`.
Shape batch_of(c10::IntArrayRef shape, size_t axes);
Tensor stacked(const Local& l, const Tensor& matrix);
Tensor stacked_column(const Local& l, const Tensor& vector);

// How an input's axes are read.
enum class Form { matrix, column };

Tangent stacked(const Local& l, Tangent t, Form form);
Tangent unstacked(const Local& l, Tangent t, Form form);

inline Form always_matrix(const Local&, size_t) { return Form::matrix; }
// The matrix is input `matrix`; the other input is a right-hand side.
template <size_t matrix>
Form right_hand_side(const Local& l, size_t i) {
  return i != matrix && l.vectors ? Form::column : Form::matrix;
}

// save(node, l) -> values [B, m, n], and l.batch; ahead(node, l, dx, all) -> Duals, those of the outputs
// first (and, if not `all`, only those moved); back(node, l, seen, gy) -> Duals, one for each input; form(l,
// input).
template <class N, class Save, class Ahead, class Back, class FormOf>
Rule matrix_rule(Save save, Ahead ahead, Back back, FormOf form) {
  auto inputs = [form](Local& l, const Tangents& dx) {
    Tangents stack(l.inputs());
    for (size_t i = 0; i < dx.size(); ++i) {
      if (!dx[i].zero()) stack[i] = stacked(l, dx[i], form(l, i));
    }
    return stack;
  };
  auto results = [form](Local& l, Duals gx) {
    Tangents dgx(l.inputs());
    for (size_t i = 0; i < gx.size(); ++i) {
      if (l.wanted[i] && gx[i].moves()) dgx[i] = unstacked(l, std::move(gx[i].t), form(l, i));
    }
    return dgx;
  };
  Rule rule;
  rule.save = [save](Local& l) { l.saved = save(node<N>(l), l); };
  rule.push = [ahead, inputs](Local& l, const Tangents& dx) {
    Duals seen = ahead(node<N>(l), l, inputs(l, dx), false);
    Tangents dy(l.out_shape.size());
    for (size_t o = 0; o < std::min(dy.size(), seen.size()); ++o) {
      if (l.used[o] && seen[o].moves()) dy[o] = view(std::move(seen[o].t), l.out_shape[o]);
    }
    return dy;
  };
  rule.pull = [ahead, back, results](Local& l, const Tangents& dgy) {
    const Duals seen = ahead(node<N>(l), l, Tangents(l.inputs()), true);
    Duals gy(std::max(seen.size(), dgy.size()));
    for (size_t o = 0; o < std::min(dgy.size(), seen.size()); ++o) {
      if (!dgy[o].zero() && seen[o].v.defined()) gy[o].t = view(dgy[o], seen[o].v.sizes());
    }
    return results(l, back(node<N>(l), l, seen, gy));
  };
  rule.curve = [ahead, back, inputs, results](Local& l, const std::vector<Tensor>& gy_, const Tangents& dx) {
    const Duals seen = ahead(node<N>(l), l, inputs(l, dx), true);
    Duals gy(std::max(seen.size(), gy_.size()));
    for (size_t o = 0; o < std::min(gy_.size(), seen.size()); ++o) {
      if (gy_[o].defined() && seen[o].v.defined()) gy[o].v = gy_[o].reshape(seen[o].v.sizes());
    }
    return results(l, back(node<N>(l), l, seen, gy));
  };
  return rule;
}

template <class N, class Save, class Ahead, class Back>
void matrix_function(const char* name, Save save, Ahead ahead, Back back) {
  add_rule(name, matrix_rule<N>(save, ahead, back, always_matrix));
}

// Families in files of their own.
void factorizations();
void reflectors();
void matrix_exponential();
void multilinear();

}  // namespace hesse::rules
