// Views whose dimensions do not each go along one axis: diagonals, and windows that overlap.
#pragma once

#include "verbs.h"

#include <optional>

namespace hesse {

// A tangent in another shape, and the view in which each dimension goes along one axis of that.
struct Straight {
  Tangent t;
  Geometry g;
};
// None where strides cannot express it.
std::optional<Straight> straightened(const Tangent& t, const Geometry& g);

}  // namespace hesse
