// Triangular factors of a matrix, and what is computed from them (see matrices.h):
//
//     A = L L'            F = L^-1 sym(dA) L^-T     dL = L Phi(F), Phi: lower, half the diagonal
//     A = P L U           F = L^-1 P' dA U^-1       d(L + U) = L tril(F, -1) + triu(F) U
//     X = (L L')^-1 B     a solve with S = L L'     gL = (gS + gS') L
//
// L and U of the second are made square with rows and columns of the identity where A is not.
#include "systems.h"

namespace hesse::rules {

namespace {

Dual symmetric(const Dual& a) { return scaled(0.5, a + transposed(a)); }

// ---- Cholesky -------------------------------------------------------------------------------------------

template <class N>
void cholesky(const char* name) {
  auto turned = [](const N& n, const Dual& a) { return n.upper ? transposed(a) : a; };
  matrix_function<N>(
      name,
      [turned](N& n, Local& l) -> std::vector<Tensor> {
        l.batch = batch_of(l.in_shape[0], 2);
        Tensor factor;
        if constexpr (requires { n.L_; }) {
          factor = l.unpack(n.L_);
        } else {
          factor = l.unpack(n.result_);
        }
        const Tensor L = turned(n, stacked(l, factor)).v;
        return {L, triangular_inverse(L, /*upper=*/false, false)};
      },
      [turned](N& n, Local& l, const Tangents& dx, bool all) -> Duals {
        const Tensor &L = l.saved[0], &inverse = l.saved[1];
        const Dual phi = half_lower(symmetric(Dual(inverse) * Dual({}, dx[0]) * Dual(inverse.mT())));
        return {turned(n, {L, all ? Tangent() : (Dual(L) * phi).t}), {inverse, phi.t}};
      },
      [turned](N& n, Local& l, const Duals& seen, const Duals& gy) -> Duals {
        const Tensor &L = l.saved[0], &inverse = l.saved[1];
        const Dual phi({}, seen[1].t);
        Dual m = turned(n, gy[0]);
        if (phi.moves()) {
          if (l.bent.empty()) l.bent = {at::matmul(L.mT(), m.v)};
          m = {l.bent[0], (transposed(phi) * Dual(l.bent[0])).t};
        } else {
          m = Dual(L.mT()) * m;
        }
        Dual f = symmetric(half_lower(m));
        if (phi.moves()) {
          const Dual e = transposed(phi) * Dual(f.v);
          f = f - e - transposed(e);
        }
        return {Dual(inverse.mT()) * Dual({}, f.t) * Dual(inverse)};
      });
}

// The matrix that a factor stands for, S = L L' or U' U, as its inverse (undefined: not known) and its
// tangent.
Tangent squared(const Tensor& factor, const Tangent& t, bool upper) {
  const Dual f(factor), df({}, t);
  const Dual half = upper ? transposed(f) * df : df * transposed(f);
  return (half + transposed(half)).t;
}
Dual to_factor(const Dual& factor, const Dual& gs, bool upper) {
  const Dual twice = gs + transposed(gs);
  return upper ? factor * twice : twice * factor;
}

Tensor square_inverse(const Tensor& factor, bool upper) {
  const Tensor i = triangular_inverse(factor, upper, false);
  return upper ? at::matmul(i, i.mT()) : at::matmul(i.mT(), i);
}

void cholesky_solve() {
  using N = gen::CholeskySolveBackward0;
  matrix_function<N>(
      "CholeskySolveBackward0",
      [](N& n, Local& l) -> std::vector<Tensor> {
        const Tensor x = l.unpack(n.result_), factor = l.unpack(n.input2_);
        l.batch = batch_of(x.sizes(), 2);
        return {stacked(l, x), stacked(l, factor), stacked(l, square_inverse(factor, n.upper))};
      },
      [](N& n, Local& l, const Tangents& dx, bool) -> Duals {
        const Tensor &x = l.saved[0], &factor = l.saved[1], &inverse = l.saved[2];
        const Solver s{inverse, squared(factor, dx[1], n.upper)};
        return {solve(s, {{}, dx[0]}, x), {factor, dx[1]}, {inverse, s.t}};
      },
      [](N& n, Local& l, const Duals& seen, const Duals& gy) -> Duals {
        const Dual gb = solve({seen[2].v, seen[2].t}, gy[0]);
        if (!l.wanted[1]) return {gb};
        return {gb, to_factor(seen[1], -(gb * transposed(seen[0])), n.upper)};
      });
}

void cholesky_inverse() {
  using N = gen::CholeskyInverseBackward0;
  matrix_function<N>(
      "CholeskyInverseBackward0",
      [](N& n, Local& l) -> std::vector<Tensor> {
        l.batch = batch_of(l.in_shape[0], 2);
        return {stacked(l, l.unpack(n.result_)), stacked(l, l.unpack(n.self_))};
      },
      [](N& n, Local& l, const Tangents& dx, bool) -> Duals {
        const Tensor &y = l.saved[0], &factor = l.saved[1];
        const Tangent ds = squared(factor, dx[0], n.upper);
        return {{y, (-(Dual(y) * Dual({}, ds) * Dual(y))).t}, {factor, dx[0]}, {y, ds}};
      },
      [](N& n, Local&, const Duals& seen, const Duals& gy) -> Duals {
        const Solver s{seen[2].v, seen[2].t};
        return {to_factor(seen[1], -solve_right(solve(s, gy[0]), s), n.upper)};
      });
}

// ---- LU -------------------------------------------------------------------------------------------------

// L and U of A [m, n] in one matrix, as `linalg.lu_factor` gives them, made square.
Tensor square_lower(const Tensor& packed) {
  const int64_t m = packed.size(1), n = packed.size(2);
  return at::constant_pad_nd(packed.tril(-1).narrow(2, 0, std::min(m, n)), {0, std::max<int64_t>(m - n, 0)}) +
         identity(packed, m, m);
}
Tensor square_upper(const Tensor& packed) {
  const int64_t m = packed.size(1), n = packed.size(2);
  const Tensor u =
      at::constant_pad_nd(packed.triu().narrow(1, 0, std::min(m, n)), {0, 0, 0, std::max<int64_t>(n - m, 0)});
  return m < n ? u + identity(packed, n, n) - identity(packed, n, m).matmul(identity(packed, m, n)) : u;
}

// saved: L, U, their inverses, P'. The tangents of L and U are those of parts of the packed matrix.
struct Factors {
  const Tensor &lower, &upper, &lower_inverse, &upper_inverse, &permuted;
  explicit Factors(const Local& l)
      : lower(l.saved[0]),
        upper(l.saved[1]),
        lower_inverse(l.saved[2]),
        upper_inverse(l.saved[3]),
        permuted(l.saved[4]) {}

  static std::vector<Tensor> saved(const Tensor& lower, const Tensor& upper, const Tensor& p) {
    return {lower, upper, triangular_inverse(lower, false, true), triangular_inverse(upper, true, false),
            p.mT()};
  }
  Dual packed(const Tangent& da) const {
    const Dual f = Dual(lower_inverse) * (Dual(permuted) * Dual({}, da)) * Dual(upper_inverse);
    return Dual(lower) * rules::lower(f, -1) + rules::upper(f) * Dual(upper);
  }
  // {L, U}, square.
  Duals moved(const Dual& packed) const {
    const int64_t m = lower.size(1), n = upper.size(1), k = std::min(m, n);
    const Dual l = rules::lower(packed, -1), u = rules::upper(packed);
    return {{lower, m == n ? l.t : padded(leading(l, m, k), m, m).t},
            {upper, m == n ? u.t : padded(leading(u, k, n), n, n).t}};
  }
  // gl, gu: of the strict lower and the upper triangle of the packed matrix, [m, n].
  Dual back(const Dual& l, const Dual& u, const Dual& gl, const Dual& gu) const {
    const Dual gf = rules::lower(transposed(l) * gl, -1) + rules::upper(gu * transposed(u));
    const Dual left = solve_transposed({lower_inverse, l.t}, gf);
    return Dual(permuted.mT()) * solve_right_transposed(left, {upper_inverse, u.t});
  }
};

void lu_factor() {
  using N = gen::LinalgLuFactorExBackward0;
  matrix_function<N>(
      "LinalgLuFactorExBackward0",
      [](N& n, Local& l) -> std::vector<Tensor> {
        l.batch = batch_of(l.in_shape[0], 2);
        const Tensor lu = l.unpack(n.LU_), packed = stacked(l, lu);
        const Tensor p = std::get<0>(at::lu_unpack(lu.detach(), l.unpack(n.pivots_), false, true));
        std::vector<Tensor> saved = Factors::saved(square_lower(packed), square_upper(packed), stacked(l, p));
        saved.push_back(packed);
        return saved;
      },
      [](N&, Local& l, const Tangents& dx, bool) -> Duals {
        const Factors f(l);
        const Dual packed = f.packed(dx[0]);
        const Duals moved = f.moved(packed);
        return {{l.saved[5], packed.t}, moved[0], moved[1]};
      },
      [](N&, Local& l, const Duals& seen, const Duals& gy) -> Duals {
        return {Factors(l).back(seen[1], seen[2], lower(gy[0], -1), upper(gy[0]))};
      });
}

// L [m, k] and U [k, n] from A [m, n]; P is constant.
void lu() {
  using N = gen::LinalgLuBackward0;
  matrix_function<N>(
      "LinalgLuBackward0",
      [](N& n, Local& l) -> std::vector<Tensor> {
        l.batch = batch_of(l.in_shape[0], 2);
        const Tensor lower = stacked(l, l.unpack(n.L_)), upper = stacked(l, l.unpack(n.U_));
        const int64_t rows = lower.size(1), columns = upper.size(2), k = lower.size(2);
        const Tensor p = n.pivot ? stacked(l, l.unpack(n.P_)) : identity(lower, rows, rows);
        const Tensor packed = at::constant_pad_nd(lower.tril(-1), {0, columns - k}) +
                              at::constant_pad_nd(upper, {0, 0, 0, rows - k});
        std::vector<Tensor> saved = Factors::saved(square_lower(packed), square_upper(packed), p);
        saved.push_back(lower);
        saved.push_back(upper);
        return saved;
      },
      [](N&, Local& l, const Tangents& dx, bool) -> Duals {
        const Factors f(l);
        const Dual packed = f.packed(dx[0]);
        const Duals moved = f.moved(packed);
        const int64_t rows = f.lower.size(1), columns = f.upper.size(1), k = std::min(rows, columns);
        return {{l.saved[5], leading(lower(packed, -1), rows, k).t},
                {l.saved[6], leading(upper(packed), k, columns).t},
                moved[0],
                moved[1]};
      },
      [](N&, Local& l, const Duals& seen, const Duals& gy) -> Duals {
        const Factors f(l);
        const int64_t rows = f.lower.size(1), columns = f.upper.size(1);
        return {f.back(seen[2], seen[3], padded(lower(gy[0], -1), rows, columns),
                       padded(upper(gy[1]), rows, columns))};
      });
}

// The same parts of a packed matrix: linear.
void lu_unpack() {
  auto sizes = [](const Local& l) {
    const Shape& s = l.in_shape[0];
    return std::pair(s[s.size() - 2], s.back());
  };
  Rule rule;
  rule.save = [](Local& l) { l.batch = batch_of(l.in_shape[0], 2); };
  rule.push = [sizes](Local& l, const Tangents& dx) {
    const auto [m, n] = sizes(l);
    const int64_t k = std::min(m, n);
    const Dual packed({}, stacked(l, dx[0], Form::matrix));
    Tangents dy(l.out_shape.size());
    if (l.used[0]) dy[0] = view(leading(lower(packed, -1), m, k).t, l.out_shape[0]);
    if (l.used[1]) dy[1] = view(leading(upper(packed), k, n).t, l.out_shape[1]);
    return dy;
  };
  rule.pull = [sizes](Local& l, const Tangents& dgy) -> Tangents {
    const auto [m, n] = sizes(l);
    Dual gl, gu;
    if (!dgy[0].zero()) gl.t = stacked(l, dgy[0], Form::matrix);
    if (!dgy[1].zero()) gu.t = stacked(l, dgy[1], Form::matrix);
    const Dual packed = padded(lower(gl, -1), m, n) + padded(upper(gu), m, n);
    return {packed.moves() ? unstacked(l, packed.t, Form::matrix) : Tangent()};
  };
  add_rule("LuUnpackBackward0", std::move(rule));
}

// A system whose matrix P L U is given packed.
void lu_solve() {
  using N = gen::LinalgLuSolveBackward0;
  matrix_function<N>(
      "LinalgLuSolveBackward0",
      [](N& n, Local& l) -> std::vector<Tensor> {
        const Tensor x = l.unpack(n.result_), lu = l.unpack(n.LU_);
        l.batch = batch_of(x.sizes(), 2);
        const Tensor packed = stacked(l, lu);
        const Tensor p =
            stacked(l, std::get<0>(at::lu_unpack(lu.detach(), l.unpack(n.pivots_), false, true)));
        std::vector<Tensor> saved = Factors::saved(square_lower(packed), square_upper(packed), p);
        saved.push_back(stacked(l, x));
        saved.push_back(at::matmul(saved[3], at::matmul(saved[2], saved[4])));
        return saved;
      },
      [](N& n, Local& l, const Tangents& dx, bool) -> Duals {
        const Factors f(l);
        const Duals moved = f.moved({{}, dx[0]});
        const Dual dl({}, moved[0].t), du({}, moved[1].t);
        const Dual da = Dual(f.permuted.mT()) * (dl * Dual(f.upper) + Dual(f.lower) * du);
        const Solver a{l.saved[6], da.t};
        return {System{n.left, n.adjoint}.solution(a, {{}, dx[1]}, l.saved[5]),
                {a.inverse, a.t},
                moved[0],
                moved[1]};
      },
      [](N& n, Local& l, const Duals& seen, const Duals& gy) -> Duals {
        const Factors f(l);
        auto [ga, gb] = system_back({n.left, n.adjoint}, seen, gy[0], l.wanted[0]);
        const Dual g = Dual(f.permuted) * ga;
        return {lower(g * transposed(seen[3]), -1) + upper(transposed(seen[2]) * g), gb};
      });
}

}  // namespace

void factorizations() {
  cholesky<gen::CholeskyBackward0>("CholeskyBackward0");
  cholesky<gen::LinalgCholeskyExBackward0>("LinalgCholeskyExBackward0");
  cholesky_solve();
  cholesky_inverse();
  lu_factor();
  lu();
  lu_unpack();
  lu_solve();
}

}  // namespace hesse::rules
