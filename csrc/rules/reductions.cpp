#include "elementwise.h"

namespace hesse::rules {

void reductions() {}

}  // namespace hesse::rules
