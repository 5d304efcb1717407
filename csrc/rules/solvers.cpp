// Inverses, determinants and linear systems (see matrices.h):
//
//     Y = A^-1          dY = -Y dA Y                        gA = -Y' gY Y'
//     A X = B           dX = A^-1 (dB - dA X)               gB = A^-T gX, gA = -gB X'
//     log |det A|       dy = <A^-T, dA>                     gA = gy A^-T
//     det A             dy = <W, dA>, W the cofactors       gA = gy W
//     P = A^+           dP = -P dA P + (1 - P A) dA' P' P + P P' dA' (1 - A P)
#include "systems.h"

namespace hesse::rules {

namespace {

// x: the solution, of which batch and kind follow; a: the matrix.
Tensor read_solution(Local& l, const Tensor& x, const Tensor& a) {
  l.vectors = x.dim() < a.dim();
  l.batch = batch_of(x.sizes(), l.vectors ? 1 : 2);
  return l.vectors ? stacked_column(l, x) : stacked(l, x);
}

void solve() {
  using N = gen::LinalgSolveExBackward0;
  add_rule("LinalgSolveExBackward0",
           matrix_rule<N>(
               [](N& n, Local& l) -> std::vector<Tensor> {
                 const Tensor a = l.unpack(n.A_), x = read_solution(l, l.unpack(n.result_), a);
                 return {x, stacked(l, inverse_of(a))};
               },
               [](N& n, Local& l, const Tangents& dx, bool) {
                 return system_ahead(l, {n.left, false}, dx[0], dx[1]);
               },
               [](N& n, Local& l, const Duals& seen, const Duals& gy) -> Duals {
                 auto [ga, gb] = system_back({n.left, false}, seen, gy[0], l.wanted[0]);
                 return {ga, gb};
               },
               right_hand_side<0>));
}

template <class N>
Dual triangle(const N& n, const Dual& a) {
  return n.upper ? upper(a, n.unitriangular ? 1 : 0) : lower(a, n.unitriangular ? -1 : 0);
}

void solve_triangular() {
  using N = gen::LinalgSolveTriangularBackward0;
  matrix_function<N>(
      "LinalgSolveTriangularBackward0",
      [](N& n, Local& l) -> std::vector<Tensor> {
        const Tensor a = l.unpack(n.self_), x = read_solution(l, l.unpack(n.result_), a);
        return {x, stacked(l, triangular_inverse(a, n.upper, n.unitriangular))};
      },
      [](N& n, Local& l, const Tangents& dx, bool) {
        return system_ahead(l, {n.left, false}, triangle(n, {{}, dx[0]}).t, dx[1]);
      },
      [](N& n, Local& l, const Duals& seen, const Duals& gy) -> Duals {
        auto [ga, gb] = system_back({n.left, false}, seen, gy[0], l.wanted[0]);
        return {triangle(n, ga), gb};
      });
}

// Its second output is the matrix itself.
void triangular_solve() {
  using N = gen::TriangularSolveBackward0;
  matrix_function<N>(
      "TriangularSolveBackward0",
      [](N& n, Local& l) -> std::vector<Tensor> {
        const Tensor a = l.unpack(n.A_), x = read_solution(l, l.unpack(n.solution_), a);
        return {x, stacked(l, triangular_inverse(a, n.upper, n.unitriangular))};
      },
      [](N& n, Local& l, const Tangents& dx, bool) -> Duals {
        Duals seen = system_ahead(l, {true, n.transpose}, triangle(n, {{}, dx[1]}).t, dx[0]);
        return {seen[0], {l.saved[1], dx[1]}, seen[1]};
      },
      [](N& n, Local& l, const Duals& seen, const Duals& gy) -> Duals {
        auto [ga, gb] = system_back({true, n.transpose}, {seen[0], seen[2]}, gy[0], l.wanted[1]);
        return {gb, triangle(n, ga) + gy[1]};
      });
}

// ---- inverses -------------------------------------------------------------------------------------------

void invert() {
  using N = gen::LinalgInvExBackward0;
  matrix_function<N>(
      "LinalgInvExBackward0",
      [](N& n, Local& l) -> std::vector<Tensor> {
        l.batch = batch_of(l.in_shape[0], 2);
        return {stacked(l, l.unpack(n.inverse_))};
      },
      [](N&, Local& l, const Tangents& dx, bool) -> Duals {
        const Tensor& y = l.saved[0];
        return {{y, (-(Dual(y) * Dual({}, dx[0]) * Dual(y))).t}, {y, dx[0]}};
      },
      [](N&, Local&, const Duals& seen, const Duals& gy) -> Duals {
        const Solver a{seen[1].v, seen[1].t};
        return {-solve_right_transposed(solve_transposed(a, gy[0]), a)};
      });
}

Tangent pseudo_inverse_ahead(const Tensor& a, const Tensor& p, const Tangent& t) {
  const Dual da({}, t), dat = transposed(da), P(p), Pt(p.mT());
  const Dual rows(identity(p, p.size(1), p.size(1)) - at::matmul(p, a));
  const Dual columns(identity(p, p.size(2), p.size(2)) - at::matmul(a, p));
  return (rows * dat * (Pt * P) + (P * Pt) * dat * columns - P * da * P).t;
}

Dual pseudo_inverse_back(const Dual& a, const Dual& p, const Dual& gp) {
  const Dual pt = transposed(p), gpt = transposed(gp), u = pt * (p * gpt), v = gpt * p * pt;
  return u - (u * p) * a + v - a * (p * v) - pt * gp * pt;
}

void pseudo_inverse() {
  using N = gen::LinalgPinvBackward0;
  Rule rule = matrix_rule<N>(
      [](N& n, Local& l) -> std::vector<Tensor> {
        l.batch = batch_of(l.in_shape[0], 2);
        return {stacked(l, l.unpack(n.result_)), stacked(l, l.unpack(n.self_))};
      },
      [](N&, Local& l, const Tangents& dx, bool) -> Duals {
        const Tensor &p = l.saved[0], &a = l.saved[1];
        return {{p, pseudo_inverse_ahead(a, p, dx[0])}, {a, dx[0]}};
      },
      [](N&, Local&, const Duals& seen, const Duals& gy) -> Duals {
        return {pseudo_inverse_back(seen[1], seen[0], gy[0])};
      },
      always_matrix);
  // As stock's loop has it, x -> d<x, pull(gy)>/dA: of the pseudo-inverse of a matrix that was called
  // Hermitian and is not, whose backward is not its gradient, only this is the row of its Hessian.
  rule.curve = [](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) -> Tangents {
    const Dual p(l.saved[0]), a(l.saved[1]), g(gy[0].reshape(l.saved[0].sizes()));
    const Dual x({}, stacked(l, dx[0], Form::matrix)), xt = transposed(x);
    const Dual pt = transposed(p), at = transposed(a), gt = transposed(g);
    const Dual u = pt * (p * gt), v = gt * p * pt;
    const Dual y = (x - x * (at * pt)) * g, w = g * (x - (pt * at) * x);
    const Dual gp = p * (y + transposed(y)) + (w + transposed(w)) * p - transposed(u) * x * at -
                    at * x * transposed(v) - (g * pt) * xt - xt * (pt * g);
    const Dual ga = pseudo_inverse_back(a, p, {{}, gp.t}) - transposed(u * p) * x - x * transposed(p * v);
    return {unstacked(l, ga.t, Form::matrix)};
  };
  add_rule("LinalgPinvBackward0", std::move(rule));
}

// X = A^+ B, and where asked for the sums of squares of R = A X - B.
void least_squares() {
  using N = gen::LinalgLstsqBackward0;
  add_rule("LinalgLstsqBackward0",
           matrix_rule<N>(
               [](N& n, Local& l) -> std::vector<Tensor> {
                 const Tensor a = l.unpack(n.self_), b = l.unpack(n.b_);
                 read_solution(l, l.unpack(n.solution_), a);
                 return {stacked(l, at::linalg_pinv(a)), stacked(l, a),
                         l.vectors ? stacked_column(l, b) : stacked(l, b)};
               },
               [](N&, Local& l, const Tangents& dx, bool) -> Duals {
                 const Dual a(l.saved[1], dx[0]), b(l.saved[2], dx[1]);
                 const Dual p(l.saved[0], pseudo_inverse_ahead(a.v, l.saved[0], dx[0]));
                 const Dual x = p * b, r = a * x - b;
                 // Not every driver computes them.
                 const bool has_squares = l.used[1] && numel_of(l.out_shape[1]) > 0;
                 const Dual squares = has_squares ? transposed(row_sums(transposed(times(r, r)))) : Dual();
                 return {x, squares, p, a, b, r};
               },
               [](N&, Local& l, const Duals& seen, const Duals& gy) -> Duals {
                 const Dual &x = seen[0], &p = seen[2], &a = seen[3], &b = seen[4], &r = seen[5];
                 const Dual gr = scaled(2.0, times(gy[1], r));
                 Duals gx(2);
                 if (l.wanted[0]) {
                   gx[0] = gr * transposed(x) + pseudo_inverse_back(a, p, gy[0] * transposed(b));
                 }
                 if (l.wanted[1]) gx[1] = transposed(p) * gy[0] - gr;
                 return gx;
               },
               right_hand_side<0>));
}

// ---- determinants ---------------------------------------------------------------------------------------

void log_determinant() {
  using N = gen::LinalgSlogdetBackward0;
  matrix_function<N>(
      "LinalgSlogdetBackward0",
      [](N& n, Local& l) -> std::vector<Tensor> {
        l.batch = batch_of(l.in_shape[0], 2);
        const Tensor sign = l.unpack(n.sign_).detach().reshape({numel_of(l.batch), 1, 1});
        return {sign, stacked(l, inverse_of(l.unpack(n.A_)))};
      },
      [](N&, Local& l, const Tangents& dx, bool) -> Duals {
        const Tensor &sign = l.saved[0], &y = l.saved[1];
        return {sign, {sign, whole_sum(times(Dual({}, dx[0]), y.mT())).t}, {y, dx[0]}};
      },
      [](N&, Local&, const Duals& seen, const Duals& gy) -> Duals {
        const Solver a{seen[2].v, seen[2].t};
        return {solve_transposed(a, times(gy[1], identity(a.inverse)))};
      });
}

// det A and its cofactors need no inverse: with A = u diag(s) v', E = P dA Q where P = u', Q = v,
//
//     W = P' diag(c) Q'        c_i  = det(u v') prod of s without i
//     dW = P' H' Q'            H_ij = d_ij sum_k C_ik E_kk - C_ij E_ji
//
// where C_ij is the product without i and j, 0 on the diagonal.
//
// The same holds for P = A^-1, Q = 1, c = det A, C = det A (1 - identity). That can be differentiated
// further, so it is what create_graph sees of matrices that have an inverse.
struct Cofactors {
  Tensor p, q, one, two;  // P, Q, c [B, n, 1], C
};

Cofactors of_singular_values(const Tensor& a) {
  const auto [u, s, vh] = at::linalg_svd(a, false);
  const int64_t n = s.size(1);
  const Tensor sign = (at::linalg_det(u) * at::linalg_det(vh)).reshape({-1, 1, 1});
  const Tensor rest = at::rsub(identity(a), 1);  // [1, i, k]
  const Tensor one = (s.unsqueeze(1) * rest + identity(a)).prod(2);
  // Of two that are left out divide by the larger; only the two smallest can both be zero and leave
  // something.
  const Tensor larger = s.unsqueeze(2), zero = larger.eq(0);  // s descends
  const Tensor half = (one.unsqueeze(1) / larger.masked_fill(zero, 1)).masked_fill(zero, 0).triu(1);
  Tensor two = half + half.mT();
  if (n > 1) {
    const Tensor last = s.narrow(1, 0, n - 2).prod(1).reshape({-1, 1, 1});
    Tensor corner = at::ones({n, n}, rest.options());
    corner = at::constant_pad_nd(corner.narrow(0, 0, 2).narrow(1, 0, 2), {n - 2, 0, n - 2, 0}) * rest;
    two = two * at::rsub(corner, 1) + last * corner;
  }
  return {u.mT(), vh.mT(), sign * one.unsqueeze(2), sign * two};
}

Cofactors of_inverse(const Tensor& a, const Tensor& det) {
  const Cofactors c = of_singular_values(a.detach());
  const Tensor s = at::linalg_svdvals(a.detach()), unit = identity(a).expand(a.sizes());
  const double most = 100 * (a.scalar_type() == at::kDouble ? 2.2e-16 : 1.2e-7);
  const Tensor singular = s.narrow(1, s.size(1) - 1, 1).le(most * s.narrow(1, 0, 1)).unsqueeze(2);
  const Tensor some = at::where(singular, unit, a);
  // Zero, with NaN for a derivative: |a - a|.
  const Tensor unknown = at::where(singular, a - a.detach(), unit).square().sum({1, 2}, true).sqrt();
  return {at::where(singular, c.p, inverse_of(some)), at::where(singular, c.q, unit),
          at::where(singular, c.one + unknown, det.expand_as(c.one)),
          at::where(singular, c.two + unknown, det * at::rsub(unit, 1))};
}

void determinant() {
  using N = gen::LinalgDetBackward0;
  matrix_function<N>(
      "LinalgDetBackward0",
      [](N& n, Local& l) -> std::vector<Tensor> {
        l.batch = batch_of(l.in_shape[0], 2);
        const Tensor a = stacked(l, l.unpack(n.A_)), det = l.unpack(n.result_).reshape({a.size(0), 1, 1});
        if (a.numel() == 0) return {det, a, a, a, a};
        const Cofactors c = c10::GradMode::is_enabled() ? of_inverse(a, det) : of_singular_values(a);
        return {det, at::matmul(c.p.mT() * c.one.mT(), c.q.mT()), c.p, c.q, c.two};
      },
      [](N&, Local& l, const Tangents& dx, bool all) -> Duals {
        const Tensor &w = l.saved[1], &p = l.saved[2], &q = l.saved[3], &two = l.saved[4];
        const Dual da({}, dx[0]);
        Duals seen{{l.saved[0], whole_sum(times(da, w)).t}, w};
        if (all && da.moves() && w.numel() > 0) {
          const Dual e = Dual(p) * da * Dual(q), diagonal = row_sums(times(e, identity(w)));
          const Dual ht = times(Dual(two) * diagonal, identity(w)) - times(transposed(e), two);
          seen[1].t = (Dual(p.mT()) * ht * Dual(q.mT())).t;
        }
        return seen;
      },
      [](N&, Local&, const Duals& seen, const Duals& gy) -> Duals { return {times(gy[0], seen[1])}; });
}

}  // namespace

void solvers() {
  solve();
  solve_triangular();
  triangular_solve();
  invert();
  pseudo_inverse();
  least_squares();
  determinant();
  log_determinant();
  factorizations();
  multilinear();
  matrix_exponential();
}

}  // namespace hesse::rules
