// The host's reads of data. Nothing else in the engine looks at a value, so a sweep on a device never waits,
// and a recording (see tape.h) knows what it was right for.
#pragma once

#include <ATen/core/Tensor.h>
#include <ATen/record_function.h>

namespace hesse {

// The host has the data of t at hand.
bool readable(const at::Tensor& t);
// The value of one boolean that is readable.
bool holds(const at::Tensor& flag);
// Takes note that the host reads t, which is readable, by itself.
const at::Tensor& read(const at::Tensor& t);

// A tensor that f makes of constants of the program alone: a recording takes it as it is.
template <class F>
at::Tensor constant(F f) {
  const at::DisableRecordFunctionGuard unobserved;
  return f();
}

}  // namespace hesse
