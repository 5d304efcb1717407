// Interpolation is a linear map of the axes of space alone: forward by the op itself, back by its backward,
// which is a node of its own where a gradient was differentiated. To the nearest element, enlarged by a power
// of two, it repeats each element: a broadcast, which keeps the ties.
#include "resampling.h"
#include "shapes.h"
#include "spatial.h"

#include <array>
#include <tuple>

namespace hesse::rules {

namespace {

template <class N>
auto scales_of(const N& n) {
  if constexpr (requires { n.scales_d; }) {
    return std::tuple(n.scales_d, n.scales_h, n.scales_w);
  } else if constexpr (requires { n.scales_h; }) {
    return std::tuple(n.scales_h, n.scales_w);
  } else {
    return std::tuple(n.scales);
  }
}

template <class N>
constexpr size_t space_rank = std::tuple_size_v<decltype(scales_of(std::declval<const N&>()))>;

// Only the others can align corners.
template <class N>
constexpr bool nearest = !requires(const N& n) { n.align_corners; };

// How often each element is repeated. Other factors than powers of two are left to the op: its rounding of
// their reciprocals decides where an element ends.
template <class N>
std::optional<Tiles> repeats(const N& n, const Shape& small, const Shape& large) {
  if constexpr (nearest<N>) {
    constexpr size_t rank = space_rank<N>;
    const auto scales = std::apply([](auto... s) { return std::array{s...}; }, scales_of(n));
    const Shape from = space_of(small, rank), to = space_of(large, rank);
    Shape factors;
    for (size_t i = 0; i < rank; ++i) {
      if (from[i] == 0 || to[i] % from[i] != 0) return std::nullopt;
      const int64_t k = to[i] / from[i];
      if ((k & (k - 1)) != 0 || (scales[i] && *scales[i] != static_cast<double>(k))) return std::nullopt;
      factors.push_back(k);
    }
    return tiles(large, small, factors);
  }
  return std::nullopt;
}

template <class Op, class N>
Tangent resampled(const N& n, const Tangent& t, const Shape& out) {
  if (const auto at = repeats(n, t.shape, out)) return spread_tiles(t, *at, out);
  return map_space(t, out, space_rank<N>, [&](const Tensor& x) {
    auto call = [&](auto... scales) {
      if constexpr (nearest<N>) {
        return Op::call(x, n.output_size, scales...);
      } else {
        return Op::call(x, n.output_size, n.align_corners, scales...);
      }
    };
    return std::apply(call, scales_of(n));
  });
}

template <class Back, class N>
Tangent resampled_back(const N& n, const Tangent& t, const Shape& in) {
  if (const auto at = repeats(n, in, t.shape)) return sum_tiles(t, *at);
  return map_space(t, in, space_rank<N>, [&](const Tensor& g) {
    Shape images{g.size(0), 1};
    images.append(in.end() - space_rank<N>, in.end());
    const auto size = c10::fromIntArrayRefSlow(images);
    auto call = [&](auto... scales) {
      if constexpr (nearest<N>) {
        return Back::call(g, n.output_size, size, scales...);
      } else {
        return Back::call(g, n.output_size, size, n.align_corners, scales...);
      }
    };
    return std::apply(call, scales_of(n));
  });
}

// The node of an op, and that of its backward. Not all are there in every version of torch.
template <class N, class NodeOfBack, class Op, class Back>
void resampling_by(const char* name, const char* back) {
  if constexpr (requires(N& n) { n.output_size; }) {
    with_backward<N, NodeOfBack>(
        name, back, [](auto& n, const Tangent& t, const Shape& to) { return resampled<Op>(n, t, to); },
        [](auto& n, const Tangent& t, const Shape& to) { return resampled_back<Back>(n, t, to); });
  }
}

}  // namespace

void interpolation() {
#define ROW(NODE, OP)                                                                                       \
  resampling_by<gen::NODE##Backward0, gen::NODE##BackwardBackward0, at::_ops::OP, at::_ops::OP##_backward>( \
      #NODE "Backward0", #NODE "BackwardBackward0")

  ROW(UpsampleNearest1D, upsample_nearest1d);
  ROW(UpsampleNearest2D, upsample_nearest2d);
  ROW(UpsampleNearest3D, upsample_nearest3d);
  ROW(UpsampleNearestExact1D, _upsample_nearest_exact1d);
  ROW(UpsampleNearestExact2D, _upsample_nearest_exact2d);
  ROW(UpsampleNearestExact3D, _upsample_nearest_exact3d);
  ROW(UpsampleLinear1D, upsample_linear1d);
  ROW(UpsampleBilinear2D, upsample_bilinear2d);
  ROW(UpsampleBicubic2D, upsample_bicubic2d);
  ROW(UpsampleTrilinear3D, upsample_trilinear3d);
  ROW(UpsampleBilinear2DAa, _upsample_bilinear2d_aa);
  ROW(UpsampleBicubic2DAa, _upsample_bicubic2d_aa);
  ROW(UpsampleLanczos2DAa, _upsample_lanczos2d_aa);
#undef ROW
}

}  // namespace hesse::rules
