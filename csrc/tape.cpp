#include "tape.h"

#include "reads.h"

#include <ATen/ATen.h>
#include <ATen/core/LegacyTypeDispatch.h>
#include <c10/core/Allocator.h>
#include <c10/core/GradMode.h>

#include <algorithm>

namespace hesse {

namespace {

using c10::IValue;

// The same elements as t, of another storage, without a history.
Tensor on_storage(c10::Storage storage, const Tensor& t) {
  const c10::DispatchKeySet keys =
      t.key_set() - c10::autograd_dispatch_keyset - c10::DispatchKeySet(c10::DispatchKey::ADInplaceOrView);
  Tensor alias = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, t.dtype());
  alias.unsafeGetTensorImpl()->set_sizes_and_strides(t.sizes(), t.strides(), t.storage_offset());
  if (t.unsafeGetTensorImpl()->is_wrapped_number()) alias.unsafeGetTensorImpl()->set_wrapped_number(true);
  return alias;
}

c10::StorageImpl* storage_of(const Tensor& t) { return t.storage().unsafeGetStorageImpl(); }

bool writes_to(const c10::Argument& argument) {
  return argument.alias_info() && argument.alias_info()->isWrite();
}

// Batch norms update their running statistics, which their schemas do not say.
bool updates_statistics(const c10::OperatorHandle& op, const torch::jit::Stack& args) {
  const std::string& name = op.schema().name();
  if (name != "aten::native_batch_norm" && name != "aten::cudnn_batch_norm" &&
      name != "aten::miopen_batch_norm")
    return false;
  return args[3].isTensor() && args[3].toTensor().defined() && args[5].toBool();
}

}  // namespace

void each_tensor(const IValue& value, const std::function<void(const Tensor&)>& f) {
  if (value.isTensor()) {
    f(value.toTensor());
  } else if (value.isTensorList()) {
    for (const Tensor& t : value.toTensorVector()) f(t);
  } else if (value.isList()) {
    for (const IValue& v : value.toListRef()) each_tensor(v, f);
  }
}

namespace {

// An index is a look at places only if it is a mask.
bool depends_on_values(const c10::OperatorHandle& op, const torch::jit::Stack& args) {
  if (!op.hasTag(at::Tag::dynamic_output_shape)) return false;
  if (op.schema().name().find("index") == std::string::npos) return true;
  bool mask = false;
  each_tensor(args[1], [&](const Tensor& t) {
    mask = mask || (t.defined() && (t.scalar_type() == at::kBool || t.scalar_type() == at::kByte));
  });
  return mask;
}

}  // namespace

std::optional<Tape::Place> Tape::place_of(const Tensor& t) const {
  const auto it = place_.find(storage_of(t));
  return it == place_.end() ? std::nullopt : std::optional(it->second);
}

// A tensor on the tape in place of one that the call had.
Tensor Tape::own(const Tensor& t) {
  if (!t.defined()) return t;
  if (t.layout() != at::kStrided || !t.has_storage()) {
    refuse(c10::str("a tensor of layout ", t.layout(), " takes part"));
    return t;
  }
  const auto place = place_of(t);
  if (place) return on_storage(c10::Storage(memories_[*place].storage), t);
  if (hidden_.count(storage_of(t))) refuse("a tensor takes part that an op has made on its way");
  // From outside, without its history, which would keep alive what the tape does without.
  return on_storage(t.storage(), t);
}

IValue Tape::own(const IValue& value) {
  if (value.isTensor()) return own(value.toTensor());
  if (value.isTensorList()) {
    std::vector<Tensor> list = value.toTensorVector();
    for (Tensor& t : list) t = own(t);
    return list;
  }
  if (value.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> list;
    for (const IValue& v : value.toListRef())
      list.push_back(v.isNone() ? std::nullopt : std::optional(own(v.toTensor())));
    return list;
  }
  return value;
}

void Tape::note_reads(Entry& entry, const IValue& value) const {
  each_tensor(value, [&](const Tensor& t) {
    if (!t.defined() || !t.has_storage()) return;
    if (const auto place = place_of(t)) entry.reads.push_back(*place);
  });
}

// The values that it has now are constants of the program: it has them again at the start of every run.
void Tape::keep_constant(const Tensor& t) {
  const auto place = place_of(t);
  if (!place || memories_[*place].written) return;
  memories_[*place].written = true;
  Entry entry;
  entry.again = [values = constant([&] { return t.detach().clone(); })](const std::vector<Tensor>&) {
    return values.clone();
  };
  entry.writes = {*place};
  entry.made = {own(t)};
  entry.holders = {1};
  entries_.push_back(std::move(entry));
}

// Memory has values that no entry has written: a number, or a list of integers, that PyTorch was given is a
// constant of the program, as what torch.tensor makes of a list; others may depend on anything.
void Tape::look_for_unseen_writes(const std::string& op, const IValue& value) {
  each_tensor(value, [&](const Tensor& t) {
    if (!t.defined() || !t.has_storage() || t.numel() == 0) return;
    const auto place = place_of(t);
    if (!place || memories_[*place].written) return;
    if (t.unsafeGetTensorImpl()->is_wrapped_number() ||
        (t.is_cpu() && c10::isIntegralType(t.scalar_type(), /*includeBool=*/true))) {
      place_.erase(storage_of(t));
    } else {
      refuse("code that is no op of PyTorch writes into a tensor that " + op + " reads");
    }
  });
}

void Tape::note_write(Entry& entry, const Tensor& t) {
  if (!t.defined() || !t.has_storage()) return;
  const auto place = place_of(t);
  if (place) {
    entry.writes.push_back(*place);
    memories_[*place].written = true;
  } else {
    entry.outside = true;
  }
}

// Results in new memory get a place. One that shares its memory with an earlier one is found through that.
void Tape::keep_new(Entry& entry, const std::vector<Tensor>& results, bool blank) {
  for (const Tensor& t : results) {
    entry.made.emplace_back();
    entry.holders.push_back(0);
    if (!t.defined()) continue;
    if (t.layout() != at::kStrided || !t.has_storage()) {
      refuse(c10::str("a tensor of layout ", t.layout(), " results"));
      continue;
    }
    if (place_of(t)) continue;
    c10::StorageImpl* original = storage_of(t);
    auto storage = c10::make_intrusive<c10::StorageImpl>(c10::StorageImpl::use_byte_size_t(),
                                                         original->nbytes(), at::DataPtr(nullptr, t.device()),
                                                         original->allocator(), /*resizable=*/false);
    place_[original] = memories_.size();
    hidden_.erase(original);
    entry.writes.push_back(memories_.size());
    memories_.push_back({std::move(storage), t.storage().getWeakStorageImpl(), !blank});
    entry.made.back() = own(t);
    entry.holders.back() = std::count_if(results.begin(), results.end(), [&](const Tensor& other) {
      return other.defined() && other.has_storage() && storage_of(other) == original;
    });
  }
}

void Tape::refuse(const std::string& reason) {
  if (refusal_.empty()) refusal_ = reason;
}

void Tape::ran(const c10::OperatorHandle& op, torch::jit::Stack args, const std::vector<Tensor>& results) {
  const c10::FunctionSchema& schema = op.schema();
  if (op.hasTag(at::Tag::inplace_view)) {
    if (schema.name() == "aten::set_" || schema.name().starts_with("aten::resize"))
      refuse(schema.name() + " exchanges the memory of a tensor");
    return;
  }
  if (schema.name() == "aten::lift_fresh") keep_constant(args[0].toTensor());
  Entry entry;
  entry.op = op;
  std::vector<const c10::StorageImpl*> given;
  for (size_t i = 0; i < args.size(); ++i) {
    const bool writes = writes_to(schema.arguments()[i]);
    each_tensor(args[i], [&](const Tensor& t) {
      if (!t.defined() || !t.has_storage()) return;
      given.push_back(storage_of(t));
      if (writes) note_write(entry, t);
    });
  }
  if (updates_statistics(op, args)) {
    note_write(entry, args[3].toTensor());
    note_write(entry, args[4].toTensor());
  }
  std::vector<Tensor> fresh = results;
  for (Tensor& t : fresh) {
    if (!t.defined() || !t.has_storage()) continue;
    if (std::find(given.begin(), given.end(), storage_of(t)) != given.end()) t = Tensor();
  }
  const bool makes = std::any_of(fresh.begin(), fresh.end(), [](const Tensor& t) { return t.defined(); });
  if (!makes && entry.writes.empty() && !entry.outside) return;  // a view, or a question about one
  for (const Place p : entry.writes) {
    const auto original = memories_[p].original.lock();
    if (original && original->nbytes() != memories_[p].storage->nbytes())
      refuse(schema.name() + " resizes its result");
  }
  for (IValue& value : args) {
    look_for_unseen_writes(schema.name(), value);
    note_reads(entry, value);
    value = own(value);
  }
  entry.checks = depends_on_values(op, args);
  entry.args = std::move(args);
  keep_new(entry, fresh,
           schema.name().starts_with("aten::empty") || schema.name().starts_with("aten::new_empty"));
  entry.draws = op.hasTag(at::Tag::nondeterministic_seeded);
  entries_.push_back(std::move(entry));
}

void Tape::hides(const torch::jit::Stack& args, const std::vector<Tensor>& results) {
  for (const Tensor& t : results) {
    if (!t.defined() || !t.has_storage() || place_of(t)) continue;
    bool given = false;
    for (const IValue& value : args) {
      each_tensor(value, [&](const Tensor& arg) {
        given = given || (arg.defined() && arg.has_storage() && storage_of(arg) == storage_of(t));
      });
    }
    if (!given) hidden_.emplace(storage_of(t), t.storage().getWeakStorageImpl());
  }
}

void Tape::wrote(std::vector<Tensor> tensors, kernels::Again again) {
  Entry entry;
  for (size_t i = 1; i < tensors.size(); ++i) look_for_unseen_writes("a kernel of hesse", tensors[i]);
  for (const Tensor& t : tensors) note_reads(entry, t);
  note_write(entry, tensors[0]);
  for (Tensor& t : tensors) t = own(t);
  entry.tensors = std::move(tensors);
  entry.again = std::move(again);
  entries_.push_back(std::move(entry));
}

void Tape::made(const Tensor& result, kernels::Again again) {
  Entry entry;
  entry.again = std::move(again);
  keep_new(entry, {result}, /*blank=*/true);
  entries_.push_back(std::move(entry));
}

void Tape::read(const Tensor& t) {
  Entry entry;
  note_reads(entry, t);
  entry.checks = true;
  entry.tensors = {own(t)};
  entry.again = [seen = constant([&] { return t.detach().clone(); })](const std::vector<Tensor>& now) {
    if (!at::equal(now[0], seen)) throw Changed("values that the host had read are others now");
    return Tensor();
  };
  entries_.push_back(std::move(entry));
}

void Tape::finish(std::vector<Tensor> inputs, const std::vector<Tensor>& outputs) {
  inputs_ = std::move(inputs);
  for (const Tensor& t : outputs) {
    output_place_.push_back(place_of(t));
    if (!output_place_.back()) refuse("no op that was seen has made the result");
    outputs_.push_back(own(t));
  }
  // A run that stops at a check is not taken back, so nothing outside may have changed before.
  bool outside = false;
  for (const Entry& entry : entries_) {
    outside = outside || entry.outside;
    if (entry.checks && outside) refuse("it changes a tensor in place before the host has read others");
  }
  drop_unneeded();
  plan_releases();
  place_.clear();
  hidden_.clear();
  for (Memory& m : memories_) m.original.reset();
}

// Work that led to nothing: a chunk that did not fit, an answer nobody took.
void Tape::drop_unneeded() {
  std::vector<bool> needed(memories_.size(), false);
  for (const auto& place : output_place_) {
    if (place) needed[*place] = true;
  }
  std::vector<Entry> kept;
  for (auto entry = entries_.rbegin(); entry != entries_.rend(); ++entry) {
    const bool keep =
        entry->outside || entry->checks || entry->draws ||
        std::any_of(entry->writes.begin(), entry->writes.end(), [&](Place p) { return needed[p]; });
    if (!keep) continue;
    for (const Place p : entry->reads) needed[p] = true;
    for (const Place p : entry->writes) needed[p] = true;
    kept.push_back(std::move(*entry));
  }
  std::reverse(kept.begin(), kept.end());
  entries_ = std::move(kept);
}

void Tape::plan_releases() {
  std::vector<bool> done(memories_.size(), false);
  for (const auto& place : output_place_) {
    if (place) done[*place] = true;  // the caller takes it
  }
  for (auto entry = entries_.rbegin(); entry != entries_.rend(); ++entry) {
    for (const auto* places : {&entry->reads, &entry->writes}) {
      for (const Place p : *places) {
        if (!done[p]) entry->released.push_back(p);
        done[p] = true;
      }
    }
  }
}

bool Tape::fits(const std::vector<Tensor>& given) const {
  return std::equal(
      given.begin(), given.end(), inputs_.begin(), inputs_.end(), [](const Tensor& a, const Tensor& b) {
        return a.sizes() == b.sizes() && a.scalar_type() == b.scalar_type() && a.device() == b.device();
      });
}

void Tape::load(const std::vector<Tensor>& given) {
  const at::AutoDispatchBelowADInplaceOrView below;
  for (size_t i = 0; i < inputs_.size(); ++i) inputs_[i].copy_(given[i], /*non_blocking=*/true);
}

namespace {

// The memory of `from` becomes that of `to`.
void move_memory(const Tensor& from, const Tensor& to, size_t holders) {
  if (from.sizes() != to.sizes()) throw Changed("the shape of a result depends on values");
  c10::StorageImpl* own = storage_of(to);
  c10::StorageImpl* theirs = storage_of(from);
  if (from.storage().use_count() == holders && theirs->nbytes() == own->nbytes() &&
      from.strides() == to.strides() && from.storage_offset() == to.storage_offset()) {
    own->set_data_ptr_noswap(std::move(theirs->mutable_data_ptr()));
    return;
  }
  const Tensor bytes = at::empty({static_cast<int64_t>(own->nbytes())}, from.options().dtype(at::kByte));
  own->set_data_ptr_noswap(std::move(storage_of(bytes)->mutable_data_ptr()));
  to.copy_(from);
}

}  // namespace

void Tape::play(Entry& entry) {
  size_t i = 0;
  auto keep = [&](const Tensor& result) {
    const Tensor& own = entry.made[i];
    if (own.defined()) move_memory(result, own, entry.holders[i]);
    ++i;
  };
  if (entry.op) {
    torch::jit::Stack stack = entry.args;
    entry.op->callBoxed(stack);
    if (entry.made.empty()) return;
    if (stack.size() == 1 && stack[0].isTensor()) return keep(stack[0].toTensor());
    std::vector<Tensor> results;  // all of them alive, as when they were recorded
    for (const IValue& value : stack) each_tensor(value, [&](const Tensor& t) { results.push_back(t); });
    stack.clear();
    for (const Tensor& t : results) keep(t);
  } else {
    const Tensor result = entry.again(entry.tensors);
    if (!entry.made.empty()) keep(result);
  }
}

void Tape::run(size_t begin, size_t end) {
  const c10::NoGradGuard no_grad;
  const at::AutoDispatchBelowADInplaceOrView below;
  const c10::impl::ExcludeDispatchKeyGuard as_recorded(c10::autocast_dispatch_keyset);
  try {
    for (size_t e = begin; e < end; ++e) {
      play(entries_[e]);
      for (const Place p : entries_[e].released) memories_[p].storage->set_data_ptr_noswap({});
    }
  } catch (...) {
    for (Memory& m : memories_) {
      if (!m.pinned) m.storage->set_data_ptr_noswap({});
    }
    throw;
  }
}

std::vector<Tensor> Tape::take() {
  const c10::NoGradGuard no_grad;
  std::unordered_map<Place, c10::Storage> taken;  // outputs may share memory
  std::vector<Tensor> results;
  for (size_t o = 0; o < outputs_.size(); ++o) {
    const Place p = *output_place_[o];
    if (memories_[p].pinned) {
      results.push_back(outputs_[o].clone());
      continue;
    }
    if (!taken.count(p)) {
      c10::StorageImpl& own = *memories_[p].storage;
      taken.emplace(p, c10::Storage(c10::Storage::use_byte_size_t(), own.nbytes(),
                                    std::move(own.mutable_data_ptr()), own.allocator(), /*resizable=*/true));
      own.set_data_ptr_noswap({});
    }
    results.push_back(on_storage(taken.at(p), outputs_[o]));
  }
  return results;
}

bool Tape::only_on(c10::Device device) const {
  bool only = true;
  auto look = [&](const Tensor& t) {
    if (t.defined() && t.device() != device && !t.unsafeGetTensorImpl()->is_wrapped_number()) only = false;
  };
  for (const Entry& entry : entries_) {
    only = only && !entry.checks;
    for (const IValue& value : entry.args) each_tensor(value, look);
    for (const auto* tensors : {&entry.tensors, &entry.made})
      std::for_each(tensors->begin(), tensors->end(), look);
  }
  return only;
}

size_t Tape::first_of_outputs(size_t bytes) const {
  for (size_t e = 0; e < entries_.size(); ++e) {
    for (const Place p : entries_[e].writes) {
      const bool large = memories_[p].storage->nbytes() >= bytes;
      if (large && std::find(output_place_.begin(), output_place_.end(), p) != output_place_.end()) return e;
    }
  }
  return entries_.size();
}

void Tape::pin(size_t end) {
  for (size_t e = 0; e < end; ++e) {
    for (const Place p : entries_[e].writes) memories_[p].pinned = true;
  }
  for (size_t e = end; e < entries_.size(); ++e)
    std::erase_if(entries_[e].released, [&](Place p) { return memories_[p].pinned; });
}

}  // namespace hesse
