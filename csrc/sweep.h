// Tangents forward (push), then adjoint tangents back (pull + curve): one pass answers for all its seeds.
#pragma once

#include "ledger.h"
#include "linearize.h"

namespace hesse {

// The tangents of the inputs that a sweep starts from: slices of the identity, or given directions.
using Seeds = std::function<void(std::vector<Tangent>& slots)>;

// J dx: the tangent of every output.
std::vector<Tangent> sweep_forward(Linearization& lin, int64_t K, const Seeds& seeds);
// J' dgy: one tangent per input.
std::vector<Tangent> sweep_back(Linearization& lin, int64_t K, std::vector<Tangent> dgys);
// H dx, one tangent per input. `seed_end[i]`: input i only needs the seeds below it (its own and those of
// earlier inputs, when the other half follows by symmetry); empty: all.
std::vector<Tangent> sweep_hessian(Linearization& lin, int64_t K, const Seeds& seeds,
                                   const std::vector<int64_t>& seed_end);

}  // namespace hesse
