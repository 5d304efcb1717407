// Rules that users write in Python (hesse.register_rule).
#pragma once

#include <pybind11/pybind11.h>

namespace hesse {

void bind_user_rules(pybind11::module_& m);

}  // namespace hesse
