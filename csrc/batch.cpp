#include "batch.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>

namespace hesse {

namespace {

// Whose a place of a value is: sample shift + sum over these axes of floor(position / step) * samples.
struct Owner {
  // At most one of an axis.
  struct Along {
    int64_t axis, step, samples;
    bool operator==(const Along& o) const { return axis == o.axis && step == o.step && samples == o.samples; }
  };
  c10::SmallVector<Along, 2> along;
  int64_t shift = 0;
};

// What a term says of samples.
struct Claims {
  Placement at;
  Shape reach;  // per axis: how far it goes on beside what moves samples
  Owner owner;
  int64_t sample;  // of its first seed
};

struct Run {
  Owner::Along along;
  int64_t n;
};
using Runs = c10::SmallVector<Run, 2>;

// Adds samples along an axis; on one that has some already only where the two count on as one.
bool extend(Runs& runs, Run more) {
  for (Run& run : runs) {
    if (run.along.axis != more.along.axis) continue;
    Run &outer = run.along.step > more.along.step ? run : more, &inner = &outer == &run ? more : run;
    if (outer.along.step != inner.n * inner.along.step ||
        outer.along.samples != inner.n * inner.along.samples)
      return false;
    run = {inner.along, inner.n * outer.n};
    return true;
  }
  runs.push_back(more);
  return true;
}

// Nothing where the term moves samples without moving the place along.
std::optional<Claims> claims_of(Term term, c10::IntArrayRef shape, int64_t n) {
  Claims claims;
  if (!place(term, shape, claims.at)) return std::nullopt;
  claims.reach = Shape(shape.size(), 0);
  claims.sample = term.k0 / n;
  int64_t within = term.k0 % n;
  Runs runs;
  for (int64_t d = 0; d < term.rank(); ++d) {
    const Dim& dim = term.dims[d];
    const int64_t axis = claims.at.axis[d], step = claims.at.step[d];
    if (dim.ks < 0 || (axis >= 0 && step < 0)) return std::nullopt;
    if (dim.n == 1 && !dim.indexed()) continue;
    if (dim.ks != 0 && dim.ks % n == 0) {
      if (dim.indexed() || axis < 0 || step == 0 || !extend(runs, {{axis, step, dim.ks / n}, dim.n}))
        return std::nullopt;
      continue;
    }
    within += dim.ks * (dim.seed_extent() - 1);
    if (axis >= 0) claims.reach[axis] += step * (dim.value_extent() - 1);
  }
  if (within >= n) return std::nullopt;
  for (const Run& run : runs) claims.owner.along.push_back(run.along);
  return claims;
}

// The sample at the term's first place, were there no shift.
int64_t sample_at(const Owner& owner, const Placement& at) {
  int64_t sample = 0;
  for (const Owner::Along& a : owner.along) sample += at.offset[a.axis] / a.step * a.samples;
  return sample;
}

// Whether every place of the term is its seed's sample's: it moves samples as the owner does, and whatever
// else moves stays within what one sample owns.
bool holds(const Owner& owner, const Claims& claims) {
  for (const Owner::Along& a : owner.along) {
    if (claims.at.offset[a.axis] % a.step + claims.reach[a.axis] >= a.step) return false;
  }
  for (const Owner::Along& a : claims.owner.along) {
    if (std::find(owner.along.begin(), owner.along.end(), a) == owner.along.end()) return false;
  }
  return owner.shift + sample_at(owner, claims.at) == claims.sample;
}

class Proof {
 public:
  Proof(const Linearization& lin, int64_t n) : lin_(lin), n_(n), owners_(lin.graph.slots.size()) {
    for (const int slot : lin.graph.inputs) {
      if (slot >= 0) owners_[slot] = first_axis();
    }
    for (size_t o = 0; o < lin.outputs.size(); ++o) {
      // A single sum over samples is nobody's.
      const int slot = lin.graph.outputs[o];
      if (slot >= 0 && lin.outputs[o].dim() > 0) owners_[slot] = first_axis();
    }
  }
  // Seeds count from sample `first` on.
  void check(const Step& step, int slot, const Tangent& t, int64_t first) {
    const bool summed =
        !lin_.graph.slots[slot].curved_above &&
        std::none_of(lin_.outputs.begin(), lin_.outputs.end(), [](const Tensor& y) { return y.dim() > 0; });
    if (summed) return;
    for (const Term& term : t.terms) {
      auto claims = claims_of(term, t.shape, n_);
      if (claims) claims->sample += first;
      if (claims && !owners_[slot]) {
        claims->owner.shift = claims->sample - sample_at(claims->owner, claims->at);
        owners_[slot] = claims->owner;
      }
      if (!claims || !holds(*owners_[slot], *claims)) throw Mixed(step.name);
    }
  }

 private:
  static Owner first_axis() {
    Owner owner;
    owner.along.push_back({0, 1, 1});
    return owner;
  }

  const Linearization& lin_;
  int64_t n_;
  std::vector<std::optional<Owner>> owners_;  // per slot, as its first tangent says
};

struct Samples {
  int64_t B, n = 0;
  std::vector<int64_t> size, begin;  // per input: elements of a sample, first seed of a sample

  explicit Samples(const Linearization& lin) : B(lin.inputs[0].size(0)) {
    for (const Tensor& x : lin.inputs) {
      begin.push_back(n);
      size.push_back(x.numel() / B);
      n += size.back();
    }
  }
};

// The elements of one sample, tied to its seeds, for every sample from `first` on.
Seeds of_samples(const Linearization& lin, const Samples& samples, int64_t first, int64_t count) {
  return [&lin, &samples, first, count](std::vector<Tangent>& slots) {
    for (size_t i = 0; i < lin.inputs.size(); ++i) {
      const int slot = lin.graph.inputs[i];
      if (slot < 0 || samples.size[i] == 0) continue;
      Tangent one;
      one.shape = Shape(slots[slot].shape.begin() + 1, slots[slot].shape.end());
      add_identity(one, 0, samples.size[i], samples.begin[i]);
      Term term = std::move(one.terms[0]);
      term.v0 = first * samples.size[i];
      if (count > 1) term.dims.insert(term.dims.begin(), {count, samples.n, samples.size[i]});
      slots[slot].terms.push_back(std::move(term));
    }
  };
}

}  // namespace

std::vector<Tensor> batch_hessian(Linearization& lin, const std::vector<std::vector<Tensor>>& seeds,
                                  SweepReport& report) {
  const Recording recording(lin.create_graph);
  const Samples samples(lin);
  std::vector<Seeding> seedings = seedings_of(lin, seeds);
  Proof proof(lin, samples.n);
  std::vector<std::vector<Tensor>> parts(seeds.size());
  auto sweep = [&](int64_t begin, int64_t end) {
    const int64_t first = begin / samples.n, count = (end - begin) / samples.n;
    return sweep_quadratic(
        lin, end - begin, samples.n, of_samples(lin, samples, first, count), seedings,
        [&](const Step& step, int slot, const Tangent& t) { proof.check(step, slot, t, first); });
  };
  Chunks chunks = chunks_on(lin.inputs[0].device());
  // At least two samples: what one alone makes says of no place whose it is.
  chunks.cut = [&](int64_t begin, int64_t size) {
    const int64_t some = std::max<int64_t>(2, size / samples.n) * samples.n, all = samples.B * samples.n;
    return begin + some + samples.n >= all ? all : begin + some;
  };
  chunks.least = 2 * samples.n;
  in_chunks(0, samples.B * samples.n, chunks, report, sweep, [&](std::vector<Tensor> sums, int64_t, int64_t) {
    for (size_t m = 0; m < sums.size(); ++m) parts[m].push_back(std::move(sums[m]));
  });
  std::vector<Tensor> result;
  for (auto& p : parts) result.push_back(p.size() == 1 ? p[0] : at::cat(p));
  return result;
}

std::vector<Tensor> assumed_batch_hessian(Linearization& lin, const std::vector<std::vector<Tensor>>& seeds,
                                          SweepReport& report) {
  const Recording recording(lin.create_graph);
  const Samples samples(lin);
  std::vector<Tensor> result;
  for (const auto& gys : seeds) {
    seed(lin, gys);
    std::vector<Tensor> parts;
    auto sweep = [&](int64_t begin, int64_t end) {
      auto features = [&](std::vector<Tangent>& slots) {
        for (size_t i = 0; i < lin.inputs.size(); ++i) {
          const int64_t from = std::max(begin, samples.begin[i]) - samples.begin[i];
          const int64_t to = std::min(end, samples.begin[i] + samples.size[i]) - samples.begin[i];
          const int slot = lin.graph.inputs[i];
          if (slot < 0 || from >= to) continue;
          Tangent one;
          one.shape = Shape(slots[slot].shape.begin() + 1, slots[slot].shape.end());
          for (const auto& [a, b] : seed_boxes(one.shape, from, to)) {
            add_identity(one, a, b, samples.begin[i] + a - begin);
          }
          for (Term& term : one.terms) {
            if (samples.B > 1) term.dims.insert(term.dims.begin(), {samples.B, 0, samples.size[i]});
            slots[slot].terms.push_back(std::move(term));
          }
        }
      };
      return sweep_hessian(lin, end - begin, features, {});
    };
    Chunks chunks = chunks_on(lin.inputs[0].device());
    in_chunks(0, samples.n, chunks, report, sweep,
              [&](std::vector<Tangent> rows, int64_t begin, int64_t end) {
                std::vector<Tensor> columns;  // [K, B, n_j]
                for (size_t j = 0; j < rows.size(); ++j) {
                  columns.push_back(dense(rows[j]).reshape({end - begin, samples.B, samples.size[j]}));
                }
                parts.push_back(at::cat(columns, 2).transpose(0, 1));
              });
    result.push_back(parts.size() == 1 ? parts[0].contiguous() : at::cat(parts, 1));
  }
  return result;
}

}  // namespace hesse
