// The Hessians of a batch of samples that do not meet: one small matrix each.
#pragma once

#include "chunks.h"

namespace hesse {

// A sample's tangent is at a place that is not known to be that sample's.
struct Mixed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// For each seeding of the outputs ([B, ...] or a sum over samples), the Hessian by each sample's own
// elements, [B, n, n], of inputs that have the samples first: [B, ...], n elements of all inputs together.
//
// That samples do not meet is proved on the way: seeds of a sample are tied to it, and wherever tangents are
// used the ties still say whose each place is. Else Mixed says by which step they were lost.
std::vector<Tensor> batch_hessian(Linearization& lin, const std::vector<std::vector<Tensor>>& seeds,
                                  SweepReport& report);
// The same where the caller answers for it: the seeds of all samples go as one.
std::vector<Tensor> assumed_batch_hessian(Linearization& lin, const std::vector<std::vector<Tensor>>& seeds,
                                          SweepReport& report);

}  // namespace hesse
