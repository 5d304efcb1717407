#include "elementwise.h"

namespace hesse::rules {

void binary() {}

}  // namespace hesse::rules
