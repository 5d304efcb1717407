// Elements of a value picked at known indices: y[j] = x[index(j)], and the transpose, which adds.
//
// Where an index tensor does not vary along an axis of both values, that axis is carried, ties and all.
#pragma once

#include "rule.h"

#include <ATen/ATen.h>

#include <optional>

namespace hesse::rules {

// Maps along axes (see map_axes) that pick elements of the last axis at known indices [D, picked].
Tensor gather_last(const Tensor& rows, const Tensor& index);
// Its transpose, back on an axis of n.
AxesMap scatter_last(int64_t n);

// One of the two values: seen under another shape, of which a strided part lies as [carried..., others...].
struct Side {
  Shape whole;    // what the op sees of the value (see `fitted`)
  Shape grouped;  // the same elements
  Geometry part;  // of `grouped`
  Shape order;    // the axis of `grouped` that each of the part's is

  explicit Side(const Shape& shape) : Side(shape, shape) {}
  Side(const Shape& shape, const Shape& groups);
  void permute(c10::IntArrayRef to);  // once
};

// The axes of a side after the carried ones count as one, flat: the index runs over those of x, for those of
// y.
struct Picks {
  Side x, y;
  int64_t carried = 0;
  Tensor index;   // [carried size or 1..., picked]
  Tensor weight;  // of y, which it broadcasts to; undefined: 1
};

// A value in the shape that an op sees: broadcast, or reshaped, or the leading part of a larger one.
Tangent fitted(Tangent t, const Shape& seen);
Tangent fitted_back(Tangent t, const Shape& shape);

// From one side to the other, both as [carried..., others as one], by what happens along that last axis,
// which becomes `size` long.
using AlongAxis = std::function<Tangent(Tangent t, int64_t axis, int64_t size)>;
Tangent moved(const Picks& p, Tangent t, const Side& from, const Side& to, const AlongAxis& along);
Tangent pick(const Picks& p, Tangent t);
Tangent unpick(const Picks& p, Tangent t);

// The same of values.
Tensor pick(const Picks& p, const Tensor& x);
Tensor unpick(const Picks& p, const Tensor& y);

// What of x no index names, as 0 and 1, of x's shape or broadcasting to it.
Tensor untouched(const Picks& p, const at::TensorOptions& options);

// y[.., j, ..] = x[.., index[.., j, ..], ..] along one axis; the index may be shorter than x along others.
Picks along(const Shape& x, int64_t dim, const Tensor& index);
// The same at one index vector for all.
Picks along_vector(const Shape& x, int64_t dim, const Tensor& index);
// y[j] = x[index[j]], where x is counted flat; negative ones count from the end.
Picks flat(const Shape& x, const Shape& y, const Tensor& index);
// y = x[i, j, :, k], say, where undefined indices are whole axes, and conditions stand for where they hold:
// `count` places, where that is known of a lone one. Without it the host must wait for the device.
Picks several(const Shape& x, const std::vector<Tensor>& indices, const at::Device& device,
              std::optional<int64_t> count);
// Which of the indices is the only one, and a condition.
std::optional<size_t> lone_mask(const std::vector<Tensor>& indices);
// The elements of x where the mask holds, both broadcast to each other; `count` of them.
Picks where(const Shape& x, const Tensor& mask, int64_t count);

// What a rule saved as its local's plan.
template <class P>
const P& plan(const Local& l) {
  return *static_cast<const P*>(l.plan.get());
}

// Rules that reduce the elements of each group, told by an index.
void group_reductions();

}  // namespace hesse::rules
