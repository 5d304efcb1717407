// Linear solves, inverses and determinants.
#include "rule.h"

namespace hesse::rules {

void solvers() {}

}  // namespace hesse::rules
