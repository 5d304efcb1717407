// Interpolation, grid sampling and patches: linear maps of the spatial axes.
#include "rule.h"

namespace hesse::rules {

void resampling() {}

}  // namespace hesse::rules
