// The algebra that rules are written in. Every verb is linear in its tangent, treats each term structurally
// where strides can express the result, and densifies the term where they cannot.
#pragma once

#include "tangent.h"

#include <functional>
#include <string>

namespace hesse {

// T * c, c broadcastable to S.
Tangent scale(Tangent t, const Tensor& c);
// The same, and 0 where c is, whatever T is there.
Tangent select(Tangent t, const Tensor& c);
// T * alpha.
Tangent scale(Tangent t, double alpha);
// The same flat values under another shape.
Tangent view(Tangent t, c10::IntArrayRef shape);
// Broadcast to `shape` (torch's rules: align at the end, repeat axes of size 1).
Tangent expand(Tangent t, c10::IntArrayRef shape);
// Transpose of expand: sums back to `shape`.
Tangent sum_to(Tangent t, c10::IntArrayRef shape);
// Sum over axes (non-negative), which are removed (keepdim: kept as size 1).
Tangent sum(Tangent t, c10::IntArrayRef axes, bool keepdim);

// A strided view of a contiguous value: element j of the view is element offset + sum_d j_d stride_d.
struct Geometry {
  Shape size, stride;
  int64_t offset = 0;
};
// Two elements of the view are the same.
bool overlaps(const Geometry& g);
// y[j] = x[geometry(j)].
Tangent take(Tangent t, const Geometry& g);
// Transpose of take: x of `shape`, x[geometry(j)] += y[j].
Tangent put(Tangent t, const Geometry& g, c10::IntArrayRef shape);

// out = einsum(T's value, W): one letter per axis of the value, of W and of the result. Letters missing from
// `out_axes` are summed over; a letter that only W has becomes a new axis of the result.
Tangent einsum(Tangent t, const std::string& t_axes, const Tensor& w, const std::string& w_axes,
               const std::string& out_axes);

// What will become of the next product: while a demand is set, `einsum` orders its result's memory as the
// Hessian's and, of a symmetric one, may compute the upper triangle only.
struct Demand {
  Shape shape;  // of the value the product flows into
  // Rewrites dimensions of that value as dimensions of the input; false where they are not strided views of
  // it.
  std::function<bool(Term& dims)> to_input;
  int64_t v_shift = 0;  // first seed of the input, counted as the sweep's seeds are
};
class DemandScope {
 public:
  explicit DemandScope(const Demand* demand);
  ~DemandScope();
  DemandScope(const DemandScope&) = delete;
  DemandScope& operator=(const DemandScope&) = delete;

 private:
  const Demand* previous_;
};

// y[.., j, ..] = x[.., index[j], ..] along one axis; the index is a vector of places, not negative.
Tangent pick_axis(Tangent t, int64_t axis, const Tensor& index);
// Its transpose, onto an axis of `size`: x[.., index[j], ..] += y[.., j, ..].
Tangent unpick_axis(Tangent t, int64_t axis, const Tensor& index, int64_t size);

// A linear map of some axes: rows [R, D, *in] -> [R, D, *out], for each of the D a tensor of known [D, ...].
using AxesMap = std::function<Tensor(const Tensor& rows, const Tensor& known)>;
// Applies f along `axes` (ascending), whose sizes become `sizes`; the other axes are carried, ties and all.
// Only what is tied along a mapped axis is made explicit there. A map that differs along carried axes is
// given by `known`: one leading axis for each carried axis, of its size or 1, then whatever f needs. R and D
// count what rows there are, so f must not rely on either.
Tangent map_axes(Tangent t, c10::IntArrayRef axes, c10::IntArrayRef sizes, const AxesMap& f,
                 const Tensor& known = {});
// The same where nothing is carried: f([R, *S]) -> [R, *out_shape].
Tangent map_rows(Tangent t, c10::IntArrayRef out_shape, const std::function<Tensor(const Tensor&)>& f);

}  // namespace hesse
