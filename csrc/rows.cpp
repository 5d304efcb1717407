#include "rows.h"

#include "ledger.h"

#include <algorithm>

namespace hesse {

Tangents on_rows(const Tangents& in, const std::vector<Shape>& out_shape, const std::vector<bool>& wanted,
                 const RowsMap& f) {
  int64_t first = INT64_MAX, last = 0, K = 0;
  at::TensorOptions options;
  for (const Tangent& t : in) {
    K = std::max(K, t.K);
    if (t.zero()) continue;
    const auto [a, b] = seed_range(t);
    first = std::min(first, a);
    last = std::max(last, b);
    options = t.options;
  }
  const auto zero = [K](const Shape& shape, const at::TensorOptions& like) {
    Tangent t;
    t.K = K;
    t.shape = shape;
    t.options = like;
    return t;
  };
  Tangents result;
  if (last == 0) {
    for (const Shape& shape : out_shape) result.push_back(zero(shape, in[0].options));
    return result;
  }
  const int64_t seeds = last - first;
  if (K > 1) ledger().densified.insert(ledger().op);
  int64_t values = 0;
  for (size_t o = 0; o < out_shape.size(); ++o) values += wanted[o] ? numel_of(out_shape[o]) : 0;
  ledger().reserve(seeds * values, options.dtype().itemsize());
  std::vector<Tensor> rows;
  for (const Tangent& t : in) {
    rows.push_back(t.zero() ? Tensor() : dense(t, first, last));
    values += t.zero() ? 0 : t.numel();
  }
  std::vector<Tensor> out = f(rows, seeds, values * options.dtype().itemsize());
  out.resize(out_shape.size());
  for (size_t o = 0; o < out_shape.size(); ++o) {
    result.push_back(wanted[o] && out[o].defined() ? from_dense(out[o], K, first)
                                                   : zero(out_shape[o], options));
  }
  return result;
}

}  // namespace hesse
