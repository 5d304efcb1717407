#include "linearize.h"

#include "ledger.h"
#include "streams.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace hesse {

Tangent conform(Tangent t, const Slot& slot) {
  if (t.shape != slot.shape) t = sum_to(std::move(t), slot.shape);
  return moved(cast(std::move(t), slot.options.dtype().toScalarType()), slot.options.device());
}

namespace {

// The reverse sweep with one direction. Adjoints go only where `wanted` says.
std::vector<Tangent> reverse(Linearization& lin, const std::function<bool(const Slot&)>& wanted, bool keep) {
  Graph& graph = lin.graph;
  std::vector<Tangent> adjoint(graph.slots.size());
  for (size_t s = 0; s < graph.slots.size(); ++s) {
    adjoint[s].K = 1;
    adjoint[s].shape = graph.slots[s].shape;
    adjoint[s].options = graph.slots[s].options;
  }
  for (size_t o = 0; o < graph.outputs.size(); ++o) {
    const int slot = graph.outputs[o];
    if (slot < 0) continue;
    Tangent seed;
    if (lin.seeds.empty()) {
      seed = zero_like(adjoint[slot], adjoint[slot].shape);
      seed.terms.emplace_back();
    } else if (lin.seeds[o].defined()) {
      seed = from_value(lin.seeds[o]);
    } else {
      continue;
    }
    accumulate(adjoint[slot], std::move(seed));
  }
  for (size_t s = graph.steps.size(); s-- > 0;) {
    const Step& step = graph.steps[s];
    Local& local = lin.locals[s];
    ledger().op = step.name.c_str();
    Tangents gy;
    bool any = false;
    for (int o : step.out) {
      gy.push_back(o >= 0 ? std::move(adjoint[o]) : Tangent());
      if (o < 0) gy.back().K = 1;
      any = any || !gy.back().zero();
    }
    for (size_t o = 0; o < gy.size(); ++o) {
      if (gy[o].zero()) continue;
      if (gy[o].terms.size() > 1) gy[o] = from_value(value(gy[o]));
      if (keep && step.rule->curve) lin.adjoints[s][o] = value(gy[o]);
    }
    if (keep && !step.rule->native) local.driven.gy = lin.adjoints[s];
    if (!any) continue;
    bool go = false;
    for (size_t i = 0; i < step.in.size(); ++i) {
      local.wanted[i] = step.in[i] >= 0 && wanted(graph.slots[step.in[i]]);
      go = go || local.wanted[i];
    }
    if (go) {
      Tangents gx = step.rule->pull(local, gy);
      for (size_t i = 0; i < gx.size(); ++i) {
        if (!local.wanted[i] || gx[i].zero()) continue;
        const int slot = step.in[i];
        accumulate(adjoint[slot], conform(std::move(gx[i]), graph.slots[slot]));
      }
    }
    local.wanted = local.active;
  }
  return adjoint;
}

// Unpacks what the step's rule needs. A curved step that turns out to have a sparse operand is driven
// instead.
void save(Linearization& lin, size_t s) {
  Step& step = lin.graph.steps[s];
  try {
    step.rule->save(lin.locals[s]);
  } catch (const SavedSparse&) {
    if (!step.rule->curve) throw;
    step.rule = autograd_rule();
    lin.locals[s] = local_of(lin.graph, step);
  }
}

std::vector<Tensor> at_inputs(const Linearization& lin, const std::vector<Tangent>& adjoint) {
  std::vector<Tensor> grads;
  for (int slot : lin.graph.inputs) grads.push_back(slot < 0 ? Tensor() : value(adjoint[slot]).contiguous());
  return grads;
}

std::vector<std::pair<Tensor, uint32_t>> read_by(const Linearization& lin) {
  std::vector<std::pair<Tensor, uint32_t>> read;
  auto add = [&read](const Tensor& t) {
    if (t.defined() && !t.is_inference())
      read.emplace_back(t, t.unsafeGetTensorImpl()->version_counter().current_version());
  };
  auto add_local = [&add](const Local& local) {
    for (const Tensor& t : local.saved) add(t);
    for (const Factor& f : local.first) add(f.c);
    for (const Factor& f : local.second) add(f.c);
  };
  for (const Tensor& x : lin.inputs) add(x);
  for (const Local& local : lin.locals) {
    add_local(local);
    if (local.inner) add_local(*local.inner);
  }
  return read;
}

}  // namespace

Linearization linearize(std::vector<Tensor> outputs, std::vector<Tensor> inputs, std::vector<Tensor> seeds,
                        bool create_graph, bool keep) {
  const Recording recording(create_graph);
  Linearization lin;
  lin.graph = build_graph(outputs, inputs);
  join_streams(lin.graph);
  lin.inputs = std::move(inputs);
  lin.outputs = std::move(outputs);
  lin.seeds = std::move(seeds);
  lin.create_graph = create_graph;
  Ledger scratch;
  const LedgerScope scope(scratch);
  lin.adjoints.resize(lin.graph.steps.size());
  for (size_t s = 0; s < lin.graph.steps.size(); ++s) {
    const Step& step = lin.graph.steps[s];
    lin.locals.push_back(local_of(lin.graph, step));
    lin.adjoints[s].resize(step.out.size());
    if (step.rule->save) save(lin, s);
  }
  const auto adjoint =
      reverse(lin, [keep](const Slot& slot) { return keep || slot.curved_below; }, /*keep=*/true);
  if (keep) {
    lin.gradient = at_inputs(lin, adjoint);
    lin.read = read_by(lin);
  }
  return lin;
}

void check_unchanged(const Linearization& lin) {
  for (const auto& [t, version] : lin.read) {
    TORCH_CHECK(t.unsafeGetTensorImpl()->version_counter().current_version() == version,
                "hesse: a tensor that the linearization reads was changed in place after it was made (shape ",
                t.sizes(), "). Linearize anew at the new values, or change a copy.");
  }
}

void seed(Linearization& lin, std::vector<Tensor> seeds) {
  const Recording recording(lin.create_graph);
  Ledger scratch;
  const LedgerScope scope(scratch);
  lin.seeds = std::move(seeds);
  lin.gradient.clear();
  for (auto& step : lin.adjoints) std::fill(step.begin(), step.end(), Tensor());
  for (Local& local : lin.locals) {
    local.bent.clear();
    if (local.inner) local.inner->bent.clear();
  }
  reverse(lin, [](const Slot& slot) { return slot.curved_below; }, /*keep=*/true);
}

void exchange(Linearization& lin, Seeding& seeding, size_t step) {
  Local& local = lin.locals[step];
  lin.adjoints[step].swap(seeding.adjoints[step]);
  local.bent.swap(seeding.bent[step]);
  if (local.inner) local.inner->bent.swap(seeding.inner_bent[step]);
  if (!lin.graph.steps[step].rule->native) local.driven.gy = lin.adjoints[step];
}

void exchange(Linearization& lin, Seeding& seeding) {
  const size_t steps = lin.graph.steps.size();
  for (auto* lists : {&seeding.adjoints, &seeding.bent, &seeding.inner_bent}) lists->resize(steps);
  for (size_t s = 0; s < steps; ++s) {
    seeding.adjoints[s].resize(lin.adjoints[s].size());
    exchange(lin, seeding, s);
  }
}

std::vector<Seeding> seedings_of(Linearization& lin, const std::vector<std::vector<Tensor>>& seeds) {
  std::vector<Seeding> seedings(seeds.size());
  for (size_t m = 0; m < seeds.size(); ++m) {
    seed(lin, seeds[m]);
    exchange(lin, seedings[m]);
  }
  return seedings;
}

std::vector<Tensor> gradient(Linearization& lin) {
  const Recording recording(lin.create_graph);
  Ledger scratch;
  const LedgerScope scope(scratch);
  return at_inputs(lin, reverse(lin, [](const Slot&) { return true; }, /*keep=*/false));
}

}  // namespace hesse
