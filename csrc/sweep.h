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
// What is asked of H dx: of input j, what the seeds [0, end[j]) make of it. Where the seeds are rows of the
// identity and H is symmetric, begin[j] is where those of input j begin (maybe before the first), and only
// elements on and above the diagonal are asked for. Empty: everything.
struct Asked {
  std::vector<int64_t> begin, end;
};
// H dx, one tangent per input.
std::vector<Tangent> sweep_hessian(Linearization& lin, int64_t K, const Seeds& seeds, const Asked& asked);
// H dx + J' dgy, from what sweep_forward kept of dx.
std::vector<Tangent> sweep_hessian(Linearization& lin, int64_t K, std::vector<Tangent> kept,
                                   std::vector<Tangent> dgys);

// Sees each tangent that a sweep makes: at a slot, by a step.
using Watch = std::function<void(const Step& step, int slot, const Tangent& t)>;
// dx' H dx for pairs of seeds within the same group of n, [K / n, n, n]: the curvature met on the way
// forward, and no way back. One for each of the seedings, all of the same tangents dx.
std::vector<Tensor> sweep_quadratic(Linearization& lin, int64_t K, int64_t n, const Seeds& seeds,
                                    std::vector<Seeding>& seedings, const Watch& watch = {});
// The same for the adjoints that `lin` has.
Tensor sweep_quadratic(Linearization& lin, int64_t K, int64_t n, const Seeds& seeds);

}  // namespace hesse
