// Sums of terms that hold more than what they add up to.
#pragma once

#include "tangent.h"

namespace hesse {

// One term in place of those that share a tie, or of all, where they hold more than its box would, or are too
// many to be worth their structure.
void combine(Tangent& t);

}  // namespace hesse
