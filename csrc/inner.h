// Inner products of the rows of two tangents.
#pragma once

#include "tangent.h"

namespace hesse {

// out[g, k, l] += Re sum_v conj(a[g n + k, v]) b[g n + l, v], out: [K / n, n, n], real and contiguous. Terms
// that are placed alike meet without leaving their structure; others as dense rows.
void add_inner(const Tensor& out, Tangent a, const Tangent& b);

}  // namespace hesse
