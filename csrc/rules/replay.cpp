#include "replay.h"

#include "ledger.h"
#include "sweep.h"

#include <c10/core/impl/LocalDispatchKeySet.h>

#include <algorithm>
#include <optional>
#include <utility>

namespace hesse {

// What the rule keeps of its step.
struct Replay {
  Linearization lin;
  std::vector<size_t> input, output;  // which of the op's the inputs and outputs of `lin` are
  // From push to curve: dx, and the tangents that it became. A curve that is asked for fewer seeds sweeps
  // anew.
  Tangents dx;
  std::vector<Tangent> kept;
  int64_t kept_bytes = 0;
};

namespace rules {

namespace {

void save(Local& l, const ReplayInputs& inputs, const ReplayForward& forward) {
  auto replay = std::make_shared<Replay>();
  const bool create_graph = c10::GradMode::is_enabled();
  std::vector<Tensor> x = inputs(l), leaves, outputs;
  {
    const AutogradScope recording(true);
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    for (size_t i = 0; i < x.size(); ++i) {
      if (!l.active[i]) continue;
      // An edge of its own, as two inputs may be one tensor; with its history where that is to go on.
      x[i] = create_graph && x[i].requires_grad() ? x[i].alias() : x[i].detach().requires_grad_(true);
      leaves.push_back(x[i]);
      replay->input.push_back(i);
    }
    std::vector<Tensor> y = forward(l, x);
    for (size_t o = 0; o < y.size(); ++o) {
      if (!y[o].defined() || !l.used[o]) continue;
      outputs.push_back(std::move(y[o]));
      replay->output.push_back(o);
    }
  }
  std::vector<Tensor> none(outputs.size());
  replay->lin = linearize(std::move(outputs), std::move(leaves), std::move(none), create_graph);
  l.replay = std::move(replay);
}

// The sweep inside of a step has a ledger of its own, with what the outer one has left.
class StepLedger {
 public:
  StepLedger() : outer_(ledger()) {
    const int64_t alive = outer_.live_bytes + outer_.step_bytes;
    if (outer_.budget_bytes > 0) own_.budget_bytes = std::max<int64_t>(1, outer_.budget_bytes - alive);
    own_.piece_bytes = outer_.piece_bytes;
    own_.room = outer_.room;
    scope_.emplace(own_);
  }
  ~StepLedger() {
    outer_.widest_bytes =
        std::max(outer_.widest_bytes, outer_.live_bytes + outer_.step_bytes + own_.widest_bytes);
    outer_.step_bytes += own_.widest_bytes;
    outer_.core_elements += own_.core_elements;
    outer_.flops += own_.flops;
    outer_.gemms += own_.gemms;
    outer_.widest_terms = std::max(outer_.widest_terms, own_.widest_terms);
    if (!own_.densified.empty()) outer_.densified.insert(outer_.op);
  }
  StepLedger(const StepLedger&) = delete;
  StepLedger& operator=(const StepLedger&) = delete;

 private:
  Ledger& outer_;
  Ledger own_;
  std::optional<LedgerScope> scope_;
};

int64_t seeds_of(const Tangents& ts) {
  int64_t K = 0;
  for (const Tangent& t : ts) K = std::max(K, t.K);
  return K;
}

Seeds from(const Replay& r, const Tangents& dx) {
  return [&r, &dx](std::vector<Tangent>& slots) {
    for (size_t i = 0; i < r.input.size(); ++i) {
      const int slot = r.lin.graph.inputs[i];
      if (slot >= 0 && !dx[r.input[i]].zero()) slots[slot] = dx[r.input[i]];
    }
  };
}

Tangents place(std::vector<Tangent> ts, const std::vector<size_t>& index, size_t count) {
  Tangents all(count);
  for (size_t i = 0; i < index.size(); ++i) all[index[i]] = std::move(ts[i]);
  return all;
}

int64_t bytes_of(const std::vector<Tangent>& ts) {
  int64_t bytes = 0;
  for (const Tangent& t : ts) {
    for (const Term& term : t.terms) {
      if (term.owned && term.core.defined()) bytes += static_cast<int64_t>(term.core.nbytes());
    }
  }
  return bytes;
}

Tangents push(Local& l, const Tangents& dx) {
  Replay& r = *l.replay;
  Tangents dy;
  {
    const StepLedger scope;
    dy = sweep_forward(r.lin, seeds_of(dx), from(r, dx), &r.kept);
  }
  r.dx = dx;
  r.kept_bytes = bytes_of(r.kept);
  ledger().kept_bytes += r.kept_bytes;
  return place(std::move(dy), r.output, l.out_shape.size());
}

std::vector<Tangent> outputs_of(const Replay& r, const Tangents& dgy) {
  std::vector<Tangent> own;
  for (size_t o : r.output) own.push_back(dgy[o]);
  return own;
}

Tangents pull(Local& l, const Tangents& dgy) {
  const StepLedger scope;
  Replay& r = *l.replay;
  return place(sweep_back(r.lin, seeds_of(dgy), outputs_of(r, dgy)), r.input, l.inputs());
}

Tangents both(Local& l, const std::vector<Tensor>& gy, const Tangents& dgy, const Tangents& dx) {
  Replay& r = *l.replay;
  std::vector<Tensor> seeds;
  for (size_t o : r.output) seeds.push_back(gy[o]);
  if (!std::equal(seeds.begin(), seeds.end(), r.lin.seeds.begin(), r.lin.seeds.end(),
                  [](const Tensor& a, const Tensor& b) { return a.is_same(b); })) {
    seed(r.lin, std::move(seeds));
  }
  const bool known = r.dx.size() == dx.size() && std::equal(dx.begin(), dx.end(), r.dx.begin(),
                                                            [](auto& a, auto& b) { return same(a, b); });
  std::vector<Tangent> kept = std::exchange(r.kept, {});
  r.dx.clear();
  ledger().kept_bytes -= std::exchange(r.kept_bytes, 0);
  const int64_t K = seeds_of(dx);
  const StepLedger scope;
  if (!known) sweep_forward(r.lin, K, from(r, dx), &kept);
  return place(sweep_hessian(r.lin, K, std::move(kept), outputs_of(r, dgy)), r.input, l.inputs());
}

Tangents curve(Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
  return both(l, gy, Tangents(l.out_shape.size()), dx);
}

}  // namespace

Rule replayed(ReplayInputs inputs, ReplayForward forward) {
  Rule rule;
  rule.save = [inputs, forward](Local& l) { save(l, inputs, forward); };
  rule.push = push;
  rule.pull = pull;
  rule.curve = curve;
  rule.both = both;
  return rule;
}

}  // namespace rules

}  // namespace hesse
