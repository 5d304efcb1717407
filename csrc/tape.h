// A tape of everything that a call computes: of PyTorch's ops below autograd, and of the kernels here. Played
// again, it does the same work on new values of the inputs, without Python, without a graph and without a
// plan.
//
// What is played is memory: each storage that the call made has a place on the tape, which holds the memory
// of the current run from the entry that makes it to the last one that needs it. Views need no entry, as they
// are other looks at a place. Tensors from outside are played as they are then.
#pragma once

#include "kernels/recorder.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/core/stack.h>

#include <optional>
#include <stdexcept>
#include <string>
#include <unordered_map>

namespace hesse {

using at::Tensor;

// Calls f with the tensors of an argument or result, alone or in lists.
void each_tensor(const at::IValue& value, const std::function<void(const Tensor&)>& f);

// A run met values for which what the tape holds is not right.
struct Changed : std::runtime_error {
  using std::runtime_error::runtime_error;
};

class Tape final : public kernels::Recorder {
 public:
  // ---- recording: ops in the order in which they ran ------------------------------------------------------

  void ran(const c10::OperatorHandle& op, torch::jit::Stack args, const std::vector<Tensor>& results);
  // Memory that ops on the tape have made on the way, or others to which these do not add up.
  void hides(const torch::jit::Stack& args, const std::vector<Tensor>& results);
  void wrote(std::vector<Tensor> tensors, kernels::Again again) override;
  void made(const Tensor& result, kernels::Again again) override;
  void read(const Tensor& t) override;
  void refuse(const std::string& reason);
  // Why the call cannot be played again; empty if it can.
  const std::string& refusal() const { return refusal_; }
  // From here on the tape plays: it takes values in `inputs`, and makes what `outputs` were.
  void finish(std::vector<Tensor> inputs, const std::vector<Tensor>& outputs);

  // ---- playing --------------------------------------------------------------------------------------------

  size_t size() const { return entries_.size(); }
  // The given tensors have the shapes, dtypes and devices of the inputs.
  bool fits(const std::vector<Tensor>& given) const;
  void load(const std::vector<Tensor>& given);
  // Throws Changed, and what the ops throw; no memory of the run is left then but what is pinned.
  void run(size_t begin, size_t end);
  // The outputs of this run: their memory is now the caller's, or a copy of what is pinned.
  std::vector<Tensor> take();

  // ---- the first part in a graph of the device ------------------------------------------------------------

  // Whether a graph of this device can play entries: all tensors are there, and the host compares none.
  bool only_on(c10::Device device) const;
  // Entries before this one make no output of at least so many bytes.
  size_t first_of_outputs(size_t bytes) const;
  // What entries before `end` made stays where it is, for as long as a graph plays them.
  void pin(size_t end);

 private:
  using Place = size_t;
  struct Memory {
    c10::intrusive_ptr<c10::StorageImpl> storage;  // of the tape's own tensors
    // What it stands for, kept so that no other storage gets its address.
    c10::weak_intrusive_ptr<c10::StorageImpl> original;
    bool written = false;  // by an entry
    bool pinned = false;
  };
  struct Entry {
    std::optional<c10::OperatorHandle> op;  // either an op with its arguments
    torch::jit::Stack args;
    kernels::Again again;  // or a kernel with its tensors
    std::vector<Tensor> tensors;
    std::vector<Tensor> made;          // per tensor that results, if its memory is new
    std::vector<size_t> holders;       // results that share that memory
    std::vector<Place> reads, writes;  // memory of the tape
    bool outside = false;              // changes what is not
    bool checks = false;               // that what the host knew has not changed
    bool draws = false;                // random numbers, as many as the call itself
    std::vector<Place> released;       // last needed here
  };

  std::optional<Place> place_of(const Tensor& t) const;
  Tensor own(const Tensor& t);
  at::IValue own(const at::IValue& value);
  void note_reads(Entry& entry, const at::IValue& value) const;
  void keep_constant(const Tensor& t);
  void look_for_unseen_writes(const std::string& op, const at::IValue& value);
  void note_write(Entry& entry, const Tensor& t);
  void keep_new(Entry& entry, const std::vector<Tensor>& results, bool blank);
  void drop_unneeded();
  void plan_releases();
  void play(Entry& entry);

  std::vector<Entry> entries_;
  std::vector<Memory> memories_;
  std::unordered_map<const c10::StorageImpl*, Place> place_;
  std::unordered_map<const c10::StorageImpl*, c10::weak_intrusive_ptr<c10::StorageImpl>> hidden_;
  std::vector<Tensor> inputs_, outputs_;
  std::vector<std::optional<Place>> output_place_;
  std::string refusal_;
};

// Records on this thread for as long as it lives.
class TapeScope {
 public:
  explicit TapeScope(Tape& tape) : previous_(kernels::recorder()) { kernels::recorder() = &tape; }
  ~TapeScope() { kernels::recorder() = previous_; }
  TapeScope(const TapeScope&) = delete;
  TapeScope& operator=(const TapeScope&) = delete;

 private:
  kernels::Recorder* previous_;
};

}  // namespace hesse
