// What the family of resampling is made of, one file per subject.
#pragma once

namespace hesse::rules {

void interpolation();
void grid_sampling();
void patches();

}  // namespace hesse::rules
