// Families of shape ops beside plain views, which `views` registers.
#pragma once

namespace hesse::rules {

void assignments();
void rearrangements();

}  // namespace hesse::rules
