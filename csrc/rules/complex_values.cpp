// Complex values between real inputs and a real output.
#include "rule.h"

namespace hesse::rules {

void complex_values() {}

}  // namespace hesse::rules
