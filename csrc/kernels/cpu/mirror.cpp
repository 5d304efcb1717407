#include "kernels/mirror.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

namespace hesse::kernels {

namespace {

// A tile of both triangles stays in the first-level cache.
constexpr int64_t kTile = 32;

template <typename Word>
void mirror(Word* m, int64_t n) {
  const int64_t tiles = (n + kTile - 1) / kTile;
  at::parallel_for(0, tiles, std::max<int64_t>(1, 4096 / std::max<int64_t>(n, 1)),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t t = begin; t < end; ++t) {
                       const int64_t i0 = t * kTile, i1 = std::min(i0 + kTile, n);
                       for (int64_t j0 = 0; j0 <= i0; j0 += kTile) {
                         for (int64_t i = i0; i < i1; ++i) {
                           for (int64_t j = j0; j < std::min(j0 + kTile, i); ++j) m[i * n + j] = m[j * n + i];
                         }
                       }
                     }
                   });
}

}  // namespace

void mirror_upper(const at::Tensor& m) {
  const int64_t n = m.size(0);
  if (!m.device().is_cpu()) {
    m.copy_(at::triu(m) + at::triu(m, 1).t());
    return;
  }
  switch (m.element_size()) {
    case 2:
      return mirror(static_cast<uint16_t*>(m.data_ptr()), n);
    case 4:
      return mirror(static_cast<uint32_t*>(m.data_ptr()), n);
    default:
      return mirror(static_cast<uint64_t*>(m.data_ptr()), n);
  }
}

}  // namespace hesse::kernels
