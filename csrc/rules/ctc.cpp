// Connectionist temporal classification.
#include "rule.h"

namespace hesse::rules {

void ctc() {}

}  // namespace hesse::rules
