// What a linearization answers beside the whole Hessian (assemble.h): products, rows, the diagonal, a packed
// triangle. `quadratic` and `hessians` sweep all seeds at once where that fits, else products and rows in
// chunks.
#pragma once

#include "chunks.h"

namespace hesse {

using MaybeTensors = std::vector<std::optional<Tensor>>;

// J dx, [K, *S] per output, and J' dgy, per input.
std::vector<Tensor> push(Linearization& lin, const MaybeTensors& dxs, SweepReport& report);
std::vector<Tensor> pull(Linearization& lin, const MaybeTensors& dgys, SweepReport& report);
// H dx for each of the directions: rows [K, *S] per input in (none: zero) and out. Where the graph is not
// symmetric it is dx' H.
std::vector<Tensor> products(Linearization& lin, const MaybeTensors& dxs, SweepReport& report);
// dx' H dx for each pair of directions, [K, K].
Tensor quadratic(Linearization& lin, const MaybeTensors& dxs, SweepReport& report);
// Rows of H in any order, counted over all inputs: [R, *S] per input.
std::vector<Tensor> rows(Linearization& lin, const std::vector<int64_t>& index, SweepReport& report);
// The Hessians of several linear forms of the outputs, [N, N] each over all inputs, which share a dtype: all
// of the same tangents. For few inputs, as the whole of each is formed at every step.
std::vector<Tensor> hessians(Linearization& lin, const std::vector<std::vector<Tensor>>& seeds,
                             SweepReport& report);
// One tensor per input, of its shape.
std::vector<Tensor> diagonal(Linearization& lin, SweepReport& report);
// H[r, c] for c <= r, row by row: [N (N + 1) / 2] over all inputs, which share a dtype and a device.
Tensor lower_triangle(Linearization& lin, SweepReport& report);

}  // namespace hesse
