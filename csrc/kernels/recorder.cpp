#include "kernels/recorder.h"

namespace hesse::kernels {

Recorder*& recorder() {
  static thread_local Recorder* current = nullptr;
  return current;
}

}  // namespace hesse::kernels
