// Interpolation, grid sampling and patches: maps of the axes of space.
#include "resampling.h"

#include "rule.h"

namespace hesse::rules {

void resampling() {
  interpolation();
  grid_sampling();
  patches();
}

}  // namespace hesse::rules
