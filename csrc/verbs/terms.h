// What several verbs do to one term.
#pragma once

#include "tangent.h"

#include <c10/util/FunctionRef.h>

namespace hesse {

// Resolves a term on the axes of the tangent's shape, as a dense box when that cannot be expressed. Values
// placed by index stay so along the axes where the verb says that it can take that, and become explicit along
// the others.
using AxisTest = c10::function_ref<bool(int64_t axis)>;
inline bool anywhere(int64_t) { return true; }
void place_or_densify(const Tangent& t, Term& term, Placement& p, AxisTest scattered = {});
// Rewrites value strides for a shape in which old axis a is new axis to[a] (-1: gone, its offset is dropped).
void move_axes(Term& term, const Placement& p, c10::IntArrayRef to, c10::IntArrayRef shape);
// Appends a dimension along which nothing varies yet.
void append_dim(Term& term, Dim dim);
// Says whose memory a core is that may have been replaced: `before` and `known` are what it may be a view of.
void claim(Term& term, const Tensor& before, const Tensor& known = {});

// A strided reading of a known tensor.
struct Window {
  Shape size, stride;
  int64_t offset;
  bool operator==(const Window& o) const {
    return size == o.size && stride == o.stride && offset == o.offset;
  }
};
Tensor windowed(const Tensor& c, const Window& w);

}  // namespace hesse
