// Decompositions (see matrices.h), with P = U' dA V and F_ij = 1 / (l_j - l_i) off the diagonal:
//
//     A V = V diag(l)    P = V' sym(dA) V, dl = diag(P), dV = V (F o P)
//     A = U diag(s) V'   ds = diag(P), dU = U (F o (P s + s P')) + (1 - U U') dA V / s,
//                        dV = V (F o (s P + P' s)) + (1 - V V') dA' U / s, with l = s^2 in F
//     A = Q R            T = dA R^-1, C = Q' T, X = tril(C, -1) - its transpose,
//                        dQ = T - Q (C - X), dR = Q' dA - X R; of a wide A, T takes the columns that are
//                        square
#include "matrices.h"

namespace hesse::rules {

namespace {

// A column as the diagonal of a matrix; and a column against the columns of a matrix, as a row.
Dual diagonal(const Dual& column) {
  const int64_t n = column.v.defined() ? column.v.size(1) : column.t.shape[1];
  const auto options =
      (column.v.defined() ? column.v.options() : column.t.options).requires_grad(std::nullopt);
  return times(column, at::eye(n, options).unsqueeze(0));
}

// 1 / (l_j - l_i), 0 on the diagonal, of a column l.
Dual gaps(const Dual& l) {
  const Tensor one = identity(l.v, l.v.size(1), l.v.size(1));
  const Tensor f = (l.v.mT() - l.v + one).reciprocal() - one;
  if (!l.moves()) return f;
  const Dual square(f * f), dl({}, l.t);
  const Dual column = times(dl, square), row = times(transposed(dl), square);
  return {f, (column - row).t};
}

Dual skew(const Dual& a) { return a - transposed(a); }

// ---- eigenvalues of symmetric matrices ------------------------------------------------------------------

void symmetric_eigen() {
  using N = gen::LinalgEighBackward0;
  matrix_function<N>(
      "LinalgEighBackward0",
      [](N& n, Local& l) -> std::vector<Tensor> {
        l.batch = batch_of(l.in_shape[0], 2);
        return {stacked_column(l, l.unpack(n.eigenvalues_)), stacked(l, l.unpack(n.eigenvectors_))};
      },
      [](N&, Local& l, const Tangents& dx, bool all) -> Duals {
        const Tensor &values = l.saved[0], &v = l.saved[1];
        const Dual half = Dual(v.mT()) * Dual({}, dx[0]);
        if (!all && !l.used[1]) return {{values, row_sums(times(half, v.mT())).t}, v};
        const Dual p = half * Dual(v), even = scaled(0.5, p + transposed(p));
        return {{values, row_sums(times(half, v.mT())).t}, {v, (Dual(v) * times(even, gaps(values))).t}};
      },
      [](N&, Local&, const Duals& seen, const Duals& gy) -> Duals {
        const Dual &values = seen[0], &v = seen[1];
        Dual inner;
        if (!gy[0].absent()) inner = diagonal(gy[0]);
        if (!gy[1].absent()) inner = inner + scaled(0.5, times(gaps(values), skew(transposed(v) * gy[1])));
        return {v * inner * transposed(v)};
      });
}

// ---- singular values ------------------------------------------------------------------------------------

// saved: U [m, k], s, V [n, k] and, of full matrices, U and V' as they are: PyTorch takes what they have
// beyond k for constants.
struct Singular {
  Dual u, s, v;

  Dual inverse() const {  // 1 / s as a row
    const Dual row = transposed(s);
    const Tensor r = row.v.reciprocal();
    return {r, times(Dual({}, row.t), -r * r).t};
  }
  Dual gap() const { return gaps(times(s, s)); }
  // (1 - w w') t / s
  Dual outside(const Dual& w, const Dual& t) const {
    const Dual scaled = times(t, inverse());
    return scaled - w * (transposed(w) * scaled);
  }
};

void singular_values() {
  using N = gen::LinalgSvdBackward0;
  matrix_function<N>(
      "LinalgSvdBackward0",
      [](N& n, Local& l) -> std::vector<Tensor> {
        l.batch = batch_of(l.in_shape[0], 2);
        return {stacked(l, l.unpack(n.U_)), stacked_column(l, l.unpack(n.S_)), stacked(l, l.unpack(n.Vh_))};
      },
      [](N&, Local& l, const Tangents& dx, bool all) -> Duals {
        const Tensor &u_all = l.saved[0], &s = l.saved[1], &vh_all = l.saved[2];
        const int64_t m = u_all.size(1), n = vh_all.size(2), k = s.size(1);
        const Tensor u = u_all.narrow(2, 0, k), v = vh_all.narrow(1, 0, k).mT();
        const Singular at{u, s, v};
        const Dual da({}, dx[0]);
        Duals seen{u_all, s, vh_all, u, v};
        if (!da.moves()) return seen;
        const Dual half = Dual(u.mT()) * da;
        seen[1].t = row_sums(times(half, v.mT())).t;
        if (!all && !l.used[0] && !l.used[2]) return seen;
        const Dual p = half * Dual(v), pt = transposed(p), f = at.gap(), row = s.mT();
        Dual du = at.u * times(f, times(p, row) + times(s, pt));
        if (m > k) du = du + at.outside(at.u, da * at.v);
        Dual dv = at.v * times(f, times(s, p) + times(pt, row));
        if (n > k) dv = dv + at.outside(at.v, transposed(da) * at.u);
        seen[3].t = du.t;
        seen[4].t = dv.t;
        seen[0].t = padded(Dual({}, du.t), m, u_all.size(2)).t;
        seen[2].t = padded(transposed(Dual({}, dv.t)), vh_all.size(1), n).t;
        return seen;
      },
      [](N&, Local&, const Duals& seen, const Duals& gy) -> Duals {
        const Singular at{seen[3], seen[1], seen[4]};
        const int64_t m = at.u.v.size(1), n = at.v.v.size(1), k = at.s.v.size(1);
        const Dual &u = at.u, &v = at.v, &s = at.s, row = transposed(s);
        const Dual gu = leading(gy[0], m, k), gv = transposed(leading(gy[2], k, n));
        Dual inner, outer;
        if (!gy[1].absent()) inner = diagonal(gy[1]);
        if (!gu.absent()) {
          inner = inner + times(times(at.gap(), skew(transposed(u) * gu)), row);
          if (m > k) outer = at.outside(u, gu) * transposed(v);
        }
        if (!gv.absent()) {
          inner = inner + times(s, times(at.gap(), skew(transposed(v) * gv)));
          if (n > k) outer = outer + u * transposed(at.outside(v, gv));
        }
        return {u * inner * transposed(v) + outer};
      });
}

// ---- QR -------------------------------------------------------------------------------------------------

void orthogonal_triangular() {
  using N = gen::LinalgQrBackward0;
  Rule rule = matrix_rule<N>(
      [](N& n, Local& l) -> std::vector<Tensor> {
        l.batch = batch_of(l.in_shape[0], 2);
        const Tensor q = stacked(l, l.unpack(n.Q_)), r = stacked(l, l.unpack(n.R_));
        return {q, r, triangular_inverse(r.narrow(2, 0, r.size(1)), /*upper=*/true, false)};
      },
      [](N&, Local& l, const Tangents& dx, bool) -> Duals {
        const Tensor &q = l.saved[0], &r = l.saved[1], &inverse = l.saved[2];
        const int64_t m = q.size(1), k = r.size(1), n = r.size(2);
        const Dual da({}, dx[0]), square = k < n ? leading(da, m, k) : da;
        const Dual t = square * Dual(inverse), c = Dual(q.mT()) * t, x = skew(lower(c, -1));
        const Tangent dr = (Dual(q.mT()) * da - x * Dual(r)).t;
        return {{q, (t - Dual(q) * (c - x)).t}, {r, dr}, {inverse, leading(Dual({}, dr), k, k).t}};
      },
      [](N&, Local&, const Duals& seen, const Duals& gy) -> Duals {
        const Dual &q = seen[0], &r = seen[1], &gq = gy[0], &gr = gy[1];
        const Solver solver{seen[2].v, seen[2].t};
        const Dual along = transposed(q) * gq;
        const Dual gc = lower(skew(along - gr * transposed(r)), -1) - along;
        const Dual square = solve_right_transposed(gq + q * gc, solver);
        const int64_t m = q.v.size(1), n = r.v.size(2);
        return {(r.v.size(1) < n ? padded(square, m, n) : square) + q * gr};
      },
      always_matrix);
  // PyTorch differentiates neither R without Q nor more columns of Q than A has.
  rule.covers = [](Local& l) {
    const Shape& a = l.in_shape[0];
    const std::string& mode = node<N>(l).mode;
    return mode == "reduced" || (mode == "complete" && a[a.size() - 2] <= a.back());
  };
  add_rule("LinalgQrBackward0", std::move(rule));
}

}  // namespace

void decompositions() {
  symmetric_eigen();
  singular_values();
  orthogonal_triangular();
  reflectors();
}

}  // namespace hesse::rules
