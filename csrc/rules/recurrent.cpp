// Recurrent cells and fused recurrent layers.
#include "rule.h"

namespace hesse::rules {

void recurrent() {}

}  // namespace hesse::rules
