#include "kernels/cpu/backend.h"

#include <ATen/Parallel.h>

#include <algorithm>

namespace hesse::kernels::cpu {

namespace {

constexpr int64_t kTile = 32;

// Tile by tile, as m may be a transposed view: both sides of a tile stay in the cache.
template <typename Word>
void copy(const Packing& p) {
  const auto* m = static_cast<const Word*>(p.m);
  const int64_t tiles = (p.size[0] + kTile - 1) / kTile;
  const int64_t grain = std::max<int64_t>(1, 1024 / std::max<int64_t>(p.size[1], 1));
  at::parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i0 = begin * kTile; i0 < std::min(end * kTile, p.size[0]); i0 += kTile) {
      for (int64_t j0 = 0; j0 < p.size[1]; j0 += kTile) {
        for (int64_t i = i0; i < std::min(i0 + kTile, p.size[0]); ++i) {
          const int64_t r = p.row + i, j_end = std::min({j0 + kTile, p.size[1], r + 1 - p.column});
          Word* to = static_cast<Word*>(p.packed) + r * (r + 1) / 2 + p.column;
          for (int64_t j = j0; j < j_end; ++j) to[j] = m[i * p.stride[0] + j * p.stride[1]];
        }
      }
    }
  });
}

}  // namespace

void pack_lower(const Packing& packing) {
  switch (packing.word) {
    case 2:
      return copy<uint16_t>(packing);
    case 4:
      return copy<uint32_t>(packing);
    default:
      return copy<uint64_t>(packing);
  }
}

}  // namespace hesse::kernels::cpu
