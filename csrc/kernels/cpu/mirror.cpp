#include "kernels/cpu/backend.h"

#include <ATen/Parallel.h>

#include <algorithm>

namespace hesse::kernels::cpu {

namespace {

constexpr int64_t kTile = 32;

// Below the diagonal, tile by tile. Both sides of a tile are read and written along their rows; in between it
// is turned in a buffer, because columns of a large matrix fall on few lines of the cache.
template <typename Word>
void mirror(Word* m, int64_t n) {
  auto turn = [m, n](int64_t i0, int64_t j0) {
    const int64_t rows = std::min(kTile, n - i0), columns = std::min(kTile, n - j0);
    Word tile[kTile][kTile + 1];
    for (int64_t j = 0; j < columns; ++j) {
      for (int64_t i = 0; i < rows; ++i) tile[i][j] = m[(j0 + j) * n + i0 + i];
    }
    for (int64_t i = 0; i < rows; ++i) {
      const int64_t end = i0 == j0 ? i : columns;
      for (int64_t j = 0; j < end; ++j) m[(i0 + i) * n + j0 + j] = tile[i][j];
    }
  };
  const int64_t tiles = (n + kTile - 1) / kTile;
  const int64_t grain = std::max<int64_t>(1, 4096 / std::max<int64_t>(n, 1));
  at::parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t) {
      for (int64_t j0 = 0; j0 <= t * kTile; j0 += kTile) turn(t * kTile, j0);
    }
  });
}

}  // namespace

void mirror_upper(void* m, int64_t n, int word) {
  switch (word) {
    case 2:
      return mirror(static_cast<uint16_t*>(m), n);
    case 4:
      return mirror(static_cast<uint32_t*>(m), n);
    default:
      return mirror(static_cast<uint64_t*>(m), n);
  }
}

}  // namespace hesse::kernels::cpu
