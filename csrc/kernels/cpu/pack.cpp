#include "kernels/pack.h"

#include "kernels/recorder.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/core/GradMode.h>

#include <algorithm>

namespace hesse::kernels {

namespace {

constexpr int64_t kTile = 32;

// Tile by tile, as m may be a transposed view: both sides of a tile stay in the cache.
template <typename Word>
void copy(Word* packed, const Word* m, at::IntArrayRef size, at::IntArrayRef stride, int64_t row,
          int64_t column) {
  const int64_t tiles = (size[0] + kTile - 1) / kTile;
  const int64_t grain = std::max<int64_t>(1, 1024 / std::max<int64_t>(size[1], 1));
  at::parallel_for(0, tiles, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i0 = begin * kTile; i0 < std::min(end * kTile, size[0]); i0 += kTile) {
      for (int64_t j0 = 0; j0 < size[1]; j0 += kTile) {
        for (int64_t i = i0; i < std::min(i0 + kTile, size[0]); ++i) {
          const int64_t r = row + i, j_end = std::min({j0 + kTile, size[1], r + 1 - column});
          Word* to = packed + r * (r + 1) / 2 + column;
          for (int64_t j = j0; j < j_end; ++j) to[j] = m[i * stride[0] + j * stride[1]];
        }
      }
    }
  });
}

}  // namespace

void pack_lower(const at::Tensor& packed, const at::Tensor& m, int64_t row, int64_t column) {
  if (!packed.is_cpu() || c10::GradMode::is_enabled()) {
    const auto places = at::TensorOptions(m.device()).dtype(at::kLong);
    const at::Tensor r = at::arange(row, row + m.size(0), places).unsqueeze(1);
    const at::Tensor c = at::arange(column, column + m.size(1), places);
    const at::Tensor lower = c <= r;
    const at::Tensor index = at::where(lower, at::floor_divide(r * (r + 1), 2) + c, at::zeros({}, places));
    packed.index_add_(0, index.reshape({-1}), at::where(lower, m, at::zeros({}, m.options())).reshape({-1}));
    return;
  }
  if (Recorder* r = recorder()) {
    r->wrote({packed, m}, [row, column](const auto& t) {
      pack_lower(t[0], t[1], row, column);
      return at::Tensor();
    });
  }
  switch (m.element_size()) {
    case 2:
      return copy(static_cast<uint16_t*>(packed.data_ptr()), static_cast<const uint16_t*>(m.data_ptr()),
                  m.sizes(), m.strides(), row, column);
    case 4:
      return copy(static_cast<uint32_t*>(packed.data_ptr()), static_cast<const uint32_t*>(m.data_ptr()),
                  m.sizes(), m.strides(), row, column);
    default:
      return copy(static_cast<uint64_t*>(packed.data_ptr()), static_cast<const uint64_t*>(m.data_ptr()),
                  m.sizes(), m.strides(), row, column);
  }
}

}  // namespace hesse::kernels
