#include "elementwise.h"

namespace hesse::rules {

void losses() {}

}  // namespace hesse::rules
