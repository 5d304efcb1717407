// Matrix decompositions and functions.
#include "rule.h"

namespace hesse::rules {

void decompositions() {}

}  // namespace hesse::rules
