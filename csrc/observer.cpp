#include "observer.h"

#include "reads.h"

#include <ATen/ATen.h>
#include <ATen/Context.h>

#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <atomic>

namespace hesse {

namespace {

using c10::DispatchKey;
using c10::IValue;

// PyTorch runs the callbacks where they are wanted: autograd hands them on to its threads.
std::atomic<Observer*> current = nullptr;

bool excluded(DispatchKey key) { return c10::impl::tls_is_dispatch_key_excluded(key); }

// Whether a call is made of calls that are observed themselves. Those go on the tape, as autograd saw them:
//   - composites, where the backend has nothing of its own;
//   - what autocast casts, then calls again;
//   - what vmap takes apart.
bool decomposes(const c10::OperatorHandle& op, const torch::jit::Stack& args) {
  bool cuda = false, wrapped = false;
  for (const IValue& value : args) {
    each_tensor(value, [&](const Tensor& t) {
      if (!t.defined()) return;
      cuda = cuda || t.is_cuda();
      wrapped = wrapped || t.key_set().has(DispatchKey::FuncTorchBatched) ||
                t.key_set().has(DispatchKey::FuncTorchGradWrapper);
    });
  }
  if (wrapped) return true;
  const auto included = c10::impl::tls_local_dispatch_key_set().included_;
  if (included.has(DispatchKey::FuncTorchDynamicLayerFrontMode) &&
      !excluded(DispatchKey::FuncTorchDynamicLayerFrontMode))
    return true;
  for (const DispatchKey autocast : {DispatchKey::AutocastCPU, DispatchKey::AutocastCUDA}) {
    if (!excluded(autocast) && op.hasKernelForDispatchKey(autocast) &&
        !op.isKernelFallthroughKernel(autocast))
      return true;
  }
  return op.hasKernelForDispatchKey(DispatchKey::CompositeImplicitAutograd) &&
         !op.hasKernelForDispatchKey(DispatchKey::CompositeExplicitAutograd) &&
         !op.hasKernelForDispatchKey(cuda ? DispatchKey::CUDA : DispatchKey::CPU);
}

Tensor state_of(c10::Device device) {
  return constant([&] { return at::globalContext().defaultGenerator(device).get_state(); });
}

std::vector<c10::Device> generators_of(const torch::jit::Stack& args) {
  std::vector<c10::Device> devices{c10::Device(at::kCPU)};
  for (const IValue& value : args) {
    each_tensor(value, [&](const Tensor& t) {
      if (t.defined() && t.is_cuda()) devices.push_back(t.device());
    });
    if (value.isDevice() && value.toDevice().is_cuda()) devices.push_back(value.toDevice());
  }
  return devices;
}

bool draws(const c10::OperatorHandle& op) { return op.hasTag(at::Tag::nondeterministic_seeded); }

}  // namespace

struct Observer::Frame final : at::ObserverContext {
  std::optional<c10::OperatorHandle> op;
  torch::jit::Stack args;
  enum { leaf, inside, decomposed } kind = leaf;
};

Observer::Observer(Tape& tape, Reads reads)
    : tape_(tape),
      reads_(std::move(reads)),
      kernels_(tape),
      handle_(at::addThreadLocalCallback(at::RecordFunctionCallback(&begin, &end)
                                             .needsInputs(true)
                                             .needsOutputs(true)
                                             .scopes({at::RecordScope::FUNCTION}))) {
  drawn_["cpu"] = state_of(c10::Device(at::kCPU));
  TORCH_CHECK(!current.exchange(this), "hesse: there is a recording already");
}

Observer::~Observer() {
  at::removeCallback(handle_);
  current = nullptr;
}

// A generator that goes on where it was goes on when the tape is played; one that is set back does not.
void Observer::look_at_generator(const Frame& frame) {
  for (const IValue& value : frame.args) {
    if (value.isGenerator()) tape_.refuse("it draws random numbers from a generator of its own");
  }
  for (const c10::Device device : generators_of(frame.args)) {
    const auto known = drawn_.find(device.str());
    if (known == drawn_.end()) continue;
    const Tensor state = state_of(device);
    const at::DisableRecordFunctionGuard unobserved;
    if (!at::equal(state, known->second)) tape_.refuse("it sets the state of a random number generator");
  }
}

std::unique_ptr<at::ObserverContext> Observer::begin(const at::RecordFunction& call) {
  const auto name = call.operator_name();
  Observer* self = current;
  if (!self || !name) return nullptr;
  auto frame = std::make_unique<Frame>();
  frame->op = c10::Dispatcher::singleton().findOp(*name);
  if (!frame->op) return nullptr;
  frame->args.assign(call.inputs().begin(), call.inputs().end());
  const std::scoped_lock lock(self->busy_);
  if (self->leaf_) {
    frame->kind = Frame::inside;
  } else if (decomposes(*frame->op, frame->args)) {
    frame->kind = Frame::decomposed;
  } else {
    self->leaf_ = frame.get();
    if (draws(*frame->op)) self->look_at_generator(*frame);
  }
  return frame;
}

void Observer::end(const at::RecordFunction& call, at::ObserverContext* context) {
  auto* frame = static_cast<Frame*>(context);
  if (!current || !frame) return;
  Observer& self = *current.load();
  std::vector<Tensor> results;
  for (const IValue& value : call.outputs())
    each_tensor(value, [&](const Tensor& t) { results.push_back(t); });
  const c10::OperatorHandle& op = *frame->op;
  if (frame->kind != Frame::inside && op.hasTag(at::Tag::data_dependent_output)) {
    bool written = true;  // by Python, as a number
    for (const IValue& value : frame->args) {
      each_tensor(value, [&](const Tensor& t) {
        written = written && (!t.defined() || t.unsafeGetTensorImpl()->is_wrapped_number());
      });
    }
    if (!written) self.reads_(op.schema().name());
  }
  const std::scoped_lock lock(self.busy_);
  if (frame->kind == Frame::inside) {
    // What autograd saves of a tensor that is about to be overwritten is a copy that it makes first.
    const c10::FunctionSchema& outer = self.leaf_->op->schema();
    if (op.schema().name() == "aten::clone" && outer.is_mutable()) {
      self.tape_.ran(op, frame->args, results);
    } else {
      self.tape_.hides(frame->args, results);
    }
  } else if (frame->kind == Frame::decomposed) {
    self.tape_.hides(frame->args, results);
  } else {
    self.leaf_ = nullptr;
    if (call.outputs().empty() && !op.schema().returns().empty()) return;  // it threw
    if (draws(op)) {
      for (const c10::Device device : generators_of(frame->args))
        self.drawn_[device.str()] = state_of(device);
    }
    self.tape_.ran(op, std::move(frame->args), results);
  }
}

}  // namespace hesse
