#include "elementwise.h"

namespace hesse::rules {

void norms() {}

}  // namespace hesse::rules
