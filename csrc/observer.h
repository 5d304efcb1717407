// Puts the ops of PyTorch on a tape as they run. It looks on by the hook of PyTorch's profiler, which changes
// nothing of what runs: no op is dispatched otherwise, no tensor gets another owner.
#pragma once

#include "tape.h"

#include <ATen/record_function.h>

#include <functional>
#include <map>
#include <mutex>
#include <string>

namespace hesse {

class Observer {
 public:
  // The values of a result leave for the host, by the op of this name.
  using Reads = std::function<void(const std::string& op)>;

  // Observes this thread for as long as it lives, and those on which autograd runs a backward pass for it;
  // one at a time in the process.
  Observer(Tape& tape, Reads reads);
  ~Observer();
  Observer(const Observer&) = delete;
  Observer& operator=(const Observer&) = delete;

 private:
  struct Frame;
  static std::unique_ptr<at::ObserverContext> begin(const at::RecordFunction& call);
  static void end(const at::RecordFunction& call, at::ObserverContext* context);

  void look_at_generator(const Frame& frame);

  Tape& tape_;
  Reads reads_;
  TapeScope kernels_;
  std::mutex busy_;
  std::map<std::string, Tensor> drawn_;  // state of the default generators after the last draw
  Frame* leaf_ = nullptr;                // the op on the tape that runs now
  at::CallbackHandle handle_;
};

}  // namespace hesse
