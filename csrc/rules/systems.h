// Linear systems A X = B and X A = B, and those with A transposed:
//
//     A X = B        dX = A^-1 (dB - dA X)        gB = A^-T gX, gA = -gB X'
#pragma once

#include "matrices.h"

namespace hesse::rules {

struct System {
  bool left, transposed;

  Dual solution(const Solver& a, const Dual& b, const Tensor& x = {}) const {
    if (left) return transposed ? solve_transposed(a, b, x) : solve(a, b, x);
    return transposed ? solve_right_transposed(b, a, x) : solve_right(b, a, x);
  }
  Dual to_b(const Solver& a, const Dual& gx) const { return System{left, !transposed}.solution(a, gx); }
  Dual to_a(const Dual& x, const Dual& gb) const {
    using rules::transposed;
    if (left) return -(this->transposed ? x * transposed(gb) : gb * transposed(x));
    return -(this->transposed ? transposed(gb) * x : transposed(x) * gb);
  }
};

// What is moved of a system: the solution, and the matrix as its inverse. saved: the solution, the inverse.
inline Duals system_ahead(const Local& l, const System& s, Tangent da, Tangent db) {
  const Solver a{l.saved[1], std::move(da)};
  return {s.solution(a, {{}, std::move(db)}, l.saved[0]), {a.inverse, a.t}};
}

// {gA, gB}
inline std::pair<Dual, Dual> system_back(const System& s, const Duals& seen, const Dual& gx, bool to_a) {
  const Dual gb = s.to_b({seen[1].v, seen[1].t}, gx);
  return {to_a ? s.to_a(seen[0], gb) : Dual(), gb};
}

}  // namespace hesse::rules
