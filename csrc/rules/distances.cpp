// Distances between rows.
#include "rule.h"

namespace hesse::rules {

void distances() {}

}  // namespace hesse::rules
