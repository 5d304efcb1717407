// The tape in Python's hands.
#pragma once

#include <pybind11/pybind11.h>

namespace hesse {

void bind_tape(pybind11::module_& m);

}  // namespace hesse
