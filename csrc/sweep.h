// Tangents forward (push), then adjoint tangents back (pull + curve): one pass answers for all its seeds.
#pragma once

#include "ledger.h"
#include "linearize.h"

namespace hesse {

// The tangents of the inputs that a sweep starts from: slices of the identity, or given directions.
using Seeds = std::function<void(std::vector<Tangent>& slots)>;

// J dx: the tangent of every output. `kept` takes the tangents that a sweep_hessian of the same dx will want.
std::vector<Tangent> sweep_forward(Linearization& lin, int64_t K, const Seeds& seeds,
                                   std::vector<Tangent>* kept = nullptr);
// J' dgy: one tangent per input.
std::vector<Tangent> sweep_back(Linearization& lin, int64_t K, std::vector<Tangent> dgys);
// What the Hessian's symmetry leaves out: input j only needs the seeds of earlier inputs and its own, [0,
// end[j]), and of its own only those up to the element's. Empty: everything.
struct Half {
  std::vector<int64_t> begin, end;  // per input, its seeds as the sweep counts them
};
// H dx, one tangent per input.
std::vector<Tangent> sweep_hessian(Linearization& lin, int64_t K, const Seeds& seeds, const Half& half);
// H dx + J' dgy, from what sweep_forward kept of dx.
std::vector<Tangent> sweep_hessian(Linearization& lin, int64_t K, std::vector<Tangent> kept,
                                   std::vector<Tangent> dgys);

}  // namespace hesse
