// Discrete Fourier transforms along some axes: linear, of real or complex values. F is the transform without
// its factor s, which `normalization` stands for and which is the same both ways; F' is the inverse one:
//
//     c2c   push  s F dx                    pull  s F' dgy
//     r2c   push  s F dx, all or half       pull  Re(s F' dgy), what the half leaves out being 0
//     c2r   push  s F' of a half, Hermitian pull  s F dgy, the half; twice where its mirror image is left out
#include "elementwise.h"
#include "shapes.h"

#include <algorithm>

namespace hesse::rules {

namespace {

// The transformed axes in ascending order, as map_axes wants them, and where they lie in its rows.
struct Transformed {
  Shape axes;  // ascending
  Shape rows;  // per transformed axis, the last one being the one that may be halved: axis of [R, D, *axes]
  Shape sizes(const Shape& shape) const {
    Shape s;
    for (int64_t a : axes) s.push_back(shape[a]);
    return s;
  }
};

template <class N>
Transformed transformed(N& n, const Shape& shape) {
  Shape dims;
  if constexpr (requires { n.dim[0].expect_int(); }) {
    dims = ints(n.dim);
  } else {
    dims = Shape(n.dim.begin(), n.dim.end());
  }
  for (int64_t& d : dims) d = wrap(d, shape);
  Transformed t{dims, {}};
  std::sort(t.axes.begin(), t.axes.end());
  for (int64_t d : dims) t.rows.push_back(2 + (std::find(t.axes.begin(), t.axes.end(), d) - t.axes.begin()));
  return t;
}

template <class N, class Push, class Pull>
void transform(const char* name, Push push, Pull pull) {
  Rule rule;
  rule.push = [push](Local& l, const Tangents& dx) -> Tangents {
    N& n = node<N>(l);
    const Transformed at = transformed(n, l.in_shape[0]);
    const int64_t last = l.out_shape[0][at.axes[at.rows.back() - 2]];
    return {map_axes(dx[0], at.axes, at.sizes(l.out_shape[0]),
                     [&](const Tensor& rows, const Tensor&) { return push(n, rows, at.rows, last); })};
  };
  rule.pull = [pull](Local& l, const Tangents& dgy) -> Tangents {
    N& n = node<N>(l);
    const Transformed at = transformed(n, l.in_shape[0]);
    const int64_t last = l.in_shape[0][at.axes[at.rows.back() - 2]];
    return {map_axes(dgy[0], at.axes, at.sizes(l.in_shape[0]),
                     [&](const Tensor& rows, const Tensor&) { return pull(n, rows, at.rows, last); })};
  };
  add_complex_rule(name, std::move(rule));
}

// The values that a half leaves out, as zeros.
Tensor padded(const Tensor& rows, int64_t axis, int64_t size) {
  Shape missing(rows.sizes().begin(), rows.sizes().end());
  missing[axis] = size - rows.size(axis);
  return missing[axis] == 0 ? rows : at::cat({rows, at::zeros(missing, rows.options())}, axis);
}

// 2 where a half's value stands for its mirror image too.
Tensor mirrored(const Tensor& rows, int64_t axis, int64_t size) {
  const int64_t twice = size - rows.size(axis);
  Shape shape(rows.dim(), 1);
  shape[axis] = rows.size(axis);
  const Tensor index = at::arange(rows.size(axis), rows.options().dtype(at::kLong));
  return rows * (1 + index.ge(1).logical_and(index.le(twice)).to(rows.scalar_type())).view(shape);
}

}  // namespace

void fourier() {
  transform<gen::FftC2CBackward0>(
      "FftC2CBackward0",
      [](auto& n, const Tensor& rows, const Shape& dims, int64_t) {
        return at::_fft_c2c(rows, dims, n.normalization, n.forward);
      },
      [](auto& n, const Tensor& rows, const Shape& dims, int64_t) {
        return at::_fft_c2c(rows, dims, n.normalization, !n.forward);
      });
  transform<gen::FftR2CBackward0>(
      "FftR2CBackward0",
      [](auto& n, const Tensor& rows, const Shape& dims, int64_t) {
        return at::_fft_r2c(rows, dims, n.normalization, n.onesided);
      },
      [](auto& n, const Tensor& rows, const Shape& dims, int64_t size) {
        const Tensor full = padded(rows, dims.back(), size);
        return at::real(at::_fft_c2c(full, dims, n.normalization, /*forward=*/false)).contiguous();
      });
  transform<gen::FftC2RBackward0>(
      "FftC2RBackward0",
      [](auto& n, const Tensor& rows, const Shape& dims, int64_t size) {
        return at::_fft_c2r(rows, dims, n.normalization, size);
      },
      [](auto& n, const Tensor& rows, const Shape& dims, int64_t) {
        return mirrored(at::_fft_r2c(rows, dims, n.normalization, /*onesided=*/true), dims.back(),
                        rows.size(dims.back()));
      });
}

}  // namespace hesse::rules
