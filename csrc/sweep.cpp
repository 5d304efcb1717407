#include "sweep.h"

#include "inner.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>
#include <unordered_map>

namespace hesse {

namespace {

std::vector<Tangent> empty_slots(const Graph& graph, int64_t K) {
  std::vector<Tangent> slots(graph.slots.size());
  for (size_t s = 0; s < slots.size(); ++s) {
    slots[s].K = K;
    slots[s].shape = graph.slots[s].shape;
    slots[s].options = graph.slots[s].options;
  }
  return slots;
}

std::vector<Tangent> at_outputs(const Linearization& lin, int64_t K, std::vector<Tangent> dgys) {
  std::vector<Tangent> slots = empty_slots(lin.graph, K);
  for (size_t o = 0; o < lin.graph.outputs.size(); ++o) {
    if (lin.graph.outputs[o] >= 0) accumulate(slots[lin.graph.outputs[o]], std::move(dgys[o]));
  }
  return slots;
}

Tangent zero_tangent(const Tensor& like, int64_t K) {
  Tangent t;
  t.K = K;
  t.shape = Shape(like.sizes().begin(), like.sizes().end());
  t.options = like.options();
  return t;
}

bool all_zero(const Tangents& ts) {
  return std::all_of(ts.begin(), ts.end(), [](const Tangent& t) { return t.zero(); });
}

void restrict_all(Tangents& ts, int64_t k_end) {
  for (Tangent& t : ts) restrict_seeds(t, k_end);
}

// Seed-sized memory alive in the slots of a sweep, each storage once, kept up to date slot by slot.
class Live {
 public:
  void add(const Tangent& t) {
    each(t, [this](const void* storage, int64_t bytes) { bytes_ += uses_[storage]++ == 0 ? bytes : 0; });
  }
  void remove(const Tangent& t) {
    each(t, [this](const void* storage, int64_t bytes) {
      const auto use = uses_.find(storage);
      if (--use->second > 0) return;
      uses_.erase(use);
      bytes_ -= bytes;
    });
  }
  void begin_step() const {
    ledger().live_bytes = bytes_ + ledger().kept_bytes;
    ledger().step_bytes = 0;
  }

 private:
  template <class F>
  static void each(const Tangent& t, F f) {
    for (const Term& term : t.terms) {
      if (!term.owned || !term.core.defined() || term.core.numel() <= 1) continue;
      f(term.core.storage().unsafeGetStorageImpl(), static_cast<int64_t>(term.core.storage().nbytes()));
    }
  }
  std::unordered_map<const void*, int> uses_;
  int64_t bytes_ = 0;
};

// The tangents of all slots.
class Slots {
 public:
  Slots(std::vector<Tangent> tangents, Live& live) : tangents_(std::move(tangents)), live_(live) {
    for (const Tangent& t : tangents_) live_.add(t);
  }
  const Tangent& operator[](int slot) const { return tangents_[slot]; }
  void set(int slot, Tangent t) {
    change(slot, [&](Tangent& old) { old = std::move(t); });
  }
  void add(int slot, Tangent t, bool combining) {
    change(slot, [&](Tangent& sum) { accumulate(sum, std::move(t), combining); });
  }
  void release(int slot) {
    change(slot, [](Tangent& t) { t.terms.clear(); });
  }
  Tangent take(int slot) {
    live_.remove(tangents_[slot]);
    return std::move(tangents_[slot]);
  }

 private:
  template <class F>
  void change(int slot, F f) {
    live_.remove(tangents_[slot]);
    f(tangents_[slot]);
    live_.add(tangents_[slot]);
  }
  std::vector<Tangent> tangents_;
  Live& live_;
};

// On the device where the step runs: a number of the host's may take part on any.
Tangents gather(const std::vector<int>& index, const Slots& slots, int64_t K, c10::Device device) {
  Tangents t;
  int64_t& widest = ledger().widest_terms;
  for (int i : index) {
    if (i >= 0) {
      t.push_back(moved(slots[i], device));
      widest = std::max(widest, static_cast<int64_t>(t.back().terms.size()));
    } else {
      t.emplace_back();
      t.back().K = K;
    }
  }
  return t;
}

// What the steps have to do, slot by slot.
struct Course {
  std::vector<int64_t> end;  // the adjoint tangent is asked for of the seeds [0, end)
  std::vector<bool> bends;   // a step above it has curvature whose adjoint tangent is asked for

  Course(const Graph& graph, int64_t K, const Asked& asked) : end(graph.slots.size(), K) {
    for (const Slot& slot : graph.slots) bends.push_back(slot.curved_above);
    if (asked.end.empty()) return;
    std::fill(end.begin(), end.end(), 0);
    std::fill(bends.begin(), bends.end(), false);
    for (size_t i = 0; i < graph.inputs.size(); ++i) {
      if (graph.inputs[i] >= 0) end[graph.inputs[i]] = asked.end[i];
    }
    for (const Step& step : graph.steps) {
      for (int o : step.out) {
        if (o >= 0) end[o] = of(step);
      }
    }
    for (auto step = graph.steps.rbegin(); step != graph.steps.rend(); ++step) {
      bool bent = step->rule->curve && of(*step) > 0;
      for (int o : step->out) bent = bent || (o >= 0 && bends[o]);
      for (int i : step->in) {
        if (i >= 0 && bent) bends[i] = true;
      }
    }
  }
  // The most that any of the step's inputs is asked for.
  int64_t of(const Step& step) const {
    int64_t most = 0;
    for (int i : step.in) most = i >= 0 ? std::max(most, end[i]) : most;
    return most;
  }
};

// Pushes the slots' tangents through the graph. For the Hessian nothing is pushed beyond the last curved step
// of its course, and a tangent is released once no curved step will want it on the way back: at once where
// `meet` sees every curved step's tangents now.
using Meet = std::function<void(size_t step, const Tangents& dx)>;
void forward(Linearization& lin, Slots& slots, const Live& live, int64_t K, const Course* course,
             const Meet& meet = {}, const Watch& watch = {}) {
  const Graph& graph = lin.graph;
  std::vector<int> uses(graph.slots.size(), 0);
  for (const Step& step : graph.steps) {
    for (int i : step.in) {
      if (i >= 0) ++uses[i];
    }
  }
  for (size_t s = 0; s < graph.steps.size(); ++s) {
    const Step& step = graph.steps[s];
    bool go = !course;
    for (int o : step.out) go = go || (o >= 0 && course->bends[o]);
    const bool met = meet && step.rule->curve;
    if (go || met) {
      ledger().op = step.name.c_str();
      const Tangents dx = gather(step.in, slots, K, lin.locals[s].device());
      if (!all_zero(dx)) live.begin_step();
      if (met && !all_zero(dx)) meet(s, dx);
      if (go && !all_zero(dx)) {
        Tangents dy = step.rule->push(lin.locals[s], dx);
        for (size_t o = 0; o < dy.size(); ++o) {
          const int slot = step.out[o];
          if (slot < 0 || dy[o].zero()) continue;
          slots.set(slot, conform(std::move(dy[o]), graph.slots[slot]));
          if (watch) watch(step, slot, slots[slot]);
        }
      }
    }
    if (!meet && (!course || step.rule->curve)) continue;
    for (int i : step.in) {
      if (i >= 0 && --uses[i] == 0) slots.release(i);
    }
  }
}

// The step that makes each slot (-1: an input).
std::vector<int> producers(const Graph& graph) {
  std::vector<int> producer(graph.slots.size(), -1);
  for (size_t s = 0; s < graph.steps.size(); ++s) {
    for (int o : graph.steps[s].out) {
      if (o >= 0) producer[o] = static_cast<int>(s);
    }
  }
  return producer;
}

// A slot that is an input, or only a chain of views away from one, is where the sweep ends.
std::optional<Demand> demand_of(Linearization& lin, const std::vector<int>& producer, int slot,
                                const Asked& asked) {
  const Graph& graph = lin.graph;
  std::vector<int> chain;
  int at = slot;
  while (producer[at] >= 0) {
    const Step& step = graph.steps[producer[at]];
    if (!step.rule->reindexes) return std::nullopt;
    chain.push_back(producer[at]);
    at = step.in[0];
  }
  const auto input = std::find(graph.inputs.begin(), graph.inputs.end(), at) - graph.inputs.begin();
  Demand demand;
  demand.shape = graph.slots[slot].shape;
  demand.v_shift = asked.begin[input];
  demand.to_input = [&lin, chain](Term& term) {
    for (int s : chain) {
      Local& local = lin.locals[s];
      Tangent t;
      t.K = 1;
      t.shape = local.out_shape[0];
      Placement p;
      Term copy = term;
      if (!place(copy, t.shape, p) || copy.rank() != term.rank()) return false;
      t.terms.push_back(term);
      t = lin.graph.steps[s].rule->pull(local, {std::move(t)})[0];
      if (t.terms.size() != 1 || t.terms[0].rank() != term.rank()) return false;
      term = std::move(t.terms[0]);
    }
    return true;
  };
  return demand;
}

std::vector<Tangent> back(Linearization& lin, Slots& dx_slots, Slots& dg, const Live& live, int64_t K,
                          bool with_curve, const Asked& asked, const Course& course) {
  const Graph& graph = lin.graph;
  const std::vector<int> producer = producers(graph);
  // Slots whose tangent only moves from here to an input.
  std::vector<bool> ends(graph.slots.size());
  for (size_t s = 0; s < ends.size(); ++s) {
    ends[s] =
        producer[s] < 0 || (graph.steps[producer[s]].rule->reindexes && ends[graph.steps[producer[s]].in[0]]);
  }
  std::vector<int> uses(graph.slots.size(), 0);
  for (const Step& step : graph.steps) {
    for (int i : step.in) {
      if (i >= 0 && step.rule->curve) ++uses[i];
    }
  }
  for (size_t s = graph.steps.size(); s-- > 0;) {
    const Step& step = graph.steps[s];
    Local& local = lin.locals[s];
    ledger().op = step.name.c_str();
    const int64_t k_end = course.of(step);

    live.begin_step();
    Tangents dgy = gather(step.out, dg, K, local.device());
    for (int o : step.out) {
      if (o >= 0) dg.release(o);
    }
    if (k_end < K) restrict_all(dgy, k_end);
    for (size_t i = 0; i < step.in.size(); ++i)
      local.wanted[i] = step.in[i] >= 0 && course.end[step.in[i]] > 0;
    auto collect = [&](Tangents gx) {
      for (size_t i = 0; i < gx.size(); ++i) {
        const int slot = step.in[i];
        if (slot < 0 || gx[i].zero() || course.end[slot] <= 0) continue;
        dg.add(slot, conform(std::move(gx[i]), graph.slots[slot]), !ends[slot]);
      }
    };
    // One input of a product at a time: each has its own demand, and its own last seed.
    auto one_by_one = [&](const Tangents& tangents, const std::function<Tangents(const Tangents&)>& apply) {
      const std::vector<bool> all = local.wanted;
      for (size_t i = 0; i < step.in.size(); ++i) {
        if (!all[i]) continue;
        std::fill(local.wanted.begin(), local.wanted.end(), false);
        local.wanted[i] = true;
        Tangents own = tangents;
        const int64_t own_end = course.end[step.in[i]];
        if (own_end < k_end) restrict_all(own, own_end);
        if (!all_zero(own)) collect(apply(own));
      }
      local.wanted = all;
    };
    const bool apart = step.rule->multiplies && !asked.begin.empty();
    const bool together = with_curve && step.rule->both;
    if (!together && !all_zero(dgy)) {
      if (apart) {
        one_by_one(dgy, [&](const Tangents& own) {
          const size_t i = std::find(local.wanted.begin(), local.wanted.end(), true) - local.wanted.begin();
          const auto wish = demand_of(lin, producer, step.in[i], asked);
          const DemandScope scope(wish ? &*wish : nullptr);
          return step.rule->pull(local, own);
        });
      } else {
        collect(step.rule->pull(local, dgy));
      }
    }
    if (with_curve && step.rule->curve) {
      Tangents dx = gather(step.in, dx_slots, K, local.device());
      for (int i : step.in) {
        if (i >= 0 && --uses[i] == 0) dx_slots.release(i);
      }
      if (k_end < K) restrict_all(dx, k_end);
      const auto& gy = lin.adjoints[s];
      const bool any_gy = std::any_of(gy.begin(), gy.end(), [](const Tensor& g) { return g.defined(); });
      const bool bends = any_gy && !all_zero(dx);
      if (together && bends) {
        collect(step.rule->both(local, gy, dgy, dx));
      } else if (together && !all_zero(dgy)) {
        collect(step.rule->pull(local, dgy));
      } else if (bends) {
        if (apart) {
          one_by_one(dx, [&](const Tangents& own) { return step.rule->curve(local, gy, own); });
        } else {
          collect(step.rule->curve(local, gy, dx));
        }
      }
    }
    local.wanted = local.active;
  }
  std::vector<Tangent> result;
  for (size_t i = 0; i < graph.inputs.size(); ++i) {
    const int slot = graph.inputs[i];
    result.push_back(slot >= 0 ? dg.take(slot) : zero_tangent(lin.inputs[i], K));
  }
  return result;
}

}  // namespace

std::vector<Tangent> sweep_forward(Linearization& lin, int64_t K, const Seeds& seeds,
                                   std::vector<Tangent>* kept) {
  std::vector<Tangent> dxs = empty_slots(lin.graph, K);
  seeds(dxs);
  Live live;
  Slots slots(std::move(dxs), live);
  forward(lin, slots, live, K, nullptr);
  std::vector<Tangent> outputs;
  for (size_t o = 0; o < lin.graph.outputs.size(); ++o) {
    const int slot = lin.graph.outputs[o];
    outputs.push_back(slot >= 0 ? slots[slot] : zero_tangent(lin.outputs[o], K));
  }
  if (kept) {
    *kept = empty_slots(lin.graph, K);
    for (const Step& step : lin.graph.steps) {
      if (!step.rule->curve) continue;
      for (int i : step.in) {
        if (i >= 0) (*kept)[i] = slots[i];
      }
    }
  }
  return outputs;
}

std::vector<Tangent> sweep_back(Linearization& lin, int64_t K, std::vector<Tangent> dgys) {
  Live live;
  Slots none({}, live), dg(at_outputs(lin, K, std::move(dgys)), live);
  return back(lin, none, dg, live, K, /*with_curve=*/false, {}, Course(lin.graph, K, {}));
}

std::vector<Tangent> sweep_hessian(Linearization& lin, int64_t K, const Seeds& seeds, const Asked& asked) {
  const Course course(lin.graph, K, asked);
  std::vector<Tangent> dxs = empty_slots(lin.graph, K);
  seeds(dxs);
  Live live;
  Slots slots(std::move(dxs), live), dg(empty_slots(lin.graph, K), live);
  forward(lin, slots, live, K, &course);
  return back(lin, slots, dg, live, K, /*with_curve=*/true, asked, course);
}

std::vector<Tangent> sweep_hessian(Linearization& lin, int64_t K, std::vector<Tangent> kept,
                                   std::vector<Tangent> dgys) {
  Live live;
  Slots slots(std::move(kept), live), dg(at_outputs(lin, K, std::move(dgys)), live);
  return back(lin, slots, dg, live, K, /*with_curve=*/true, {}, Course(lin.graph, K, {}));
}

namespace {

// What curve makes of dx at a step, as the sweep will add it; empty where no adjoint is.
Tangents bend(Linearization& lin, size_t s, const Tangents& dx) {
  const Step& step = lin.graph.steps[s];
  const auto& gy = lin.adjoints[s];
  if (std::none_of(gy.begin(), gy.end(), [](const Tensor& g) { return g.defined(); })) return {};
  Tangents bent = step.rule->curve(lin.locals[s], gy, dx);
  for (size_t i = 0; i < bent.size(); ++i) {
    if (!bent[i].zero()) bent[i] = conform(std::move(bent[i]), lin.graph.slots[step.in[i]]);
  }
  return bent;
}

// The adjoints of a seeding at one step, for as long as this lives: a chunk that does not fit is swept again.
class Seeded {
 public:
  Seeded(Linearization& lin, Seeding& seeding, size_t step) : lin_(lin), seeding_(seeding), step_(step) {
    exchange(lin_, seeding_, step_);
  }
  ~Seeded() { exchange(lin_, seeding_, step_); }
  Seeded(const Seeded&) = delete;
  Seeded& operator=(const Seeded&) = delete;

 private:
  Linearization& lin_;
  Seeding& seeding_;
  size_t step_;
};

void add_inner(const Tensor& sum, const Tangents& bent, const Tangents& dx) {
  for (size_t i = 0; i < bent.size(); ++i) {
    if (dx[i].zero() || bent[i].zero()) continue;
    const Tensor here = dx[i].options.device() == sum.device()
                            ? sum
                            : at::zeros_like(sum, sum.options().device(dx[i].options.device()));
    add_inner(here, moved(bent[i], here.device()), dx[i]);
    if (!here.is_same(sum)) sum.add_(here.to(sum.options()));
  }
}

Tensor no_sum(const Linearization& lin, int64_t K, int64_t n) {
  return at::zeros({K / n, n, n}, lin.inputs[0].options().requires_grad(std::nullopt));
}

}  // namespace

Tensor sweep_quadratic(Linearization& lin, int64_t K, int64_t n, const Seeds& seeds) {
  const Course course(lin.graph, K, {});
  std::vector<Tangent> dxs = empty_slots(lin.graph, K);
  seeds(dxs);
  const Tensor sum = no_sum(lin, K, n);
  Live live;
  Slots slots(std::move(dxs), live);
  forward(lin, slots, live, K, &course,
          [&](size_t s, const Tangents& dx) { add_inner(sum, bend(lin, s, dx), dx); });
  return sum;
}

std::vector<Tensor> sweep_quadratic(Linearization& lin, int64_t K, int64_t n, const Seeds& seeds,
                                    std::vector<Seeding>& seedings, const Watch& watch) {
  std::vector<Tangent> dxs = empty_slots(lin.graph, K);
  seeds(dxs);
  std::vector<Tensor> sums;
  for (size_t m = 0; m < seedings.size(); ++m) sums.push_back(no_sum(lin, K, n));
  Live live;
  Slots slots(std::move(dxs), live);
  auto meet = [&](size_t s, const Tangents& dx) {
    const Step& step = lin.graph.steps[s];
    for (size_t m = 0; m < seedings.size(); ++m) {
      const Tangents bent = [&] {
        const Seeded at(lin, seedings[m], s);
        return bend(lin, s, dx);
      }();
      for (size_t i = 0; watch && i < bent.size(); ++i) {
        if (!bent[i].zero()) watch(step, step.in[i], bent[i]);
      }
      add_inner(sums[m], bent, dx);
    }
  };
  // What is watched is all that is on the way.
  const Course course(lin.graph, K, {});
  forward(lin, slots, live, K, watch ? nullptr : &course, meet, watch);
  return sums;
}

}  // namespace hesse
