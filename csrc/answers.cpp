#include "answers.h"

#include "kernels/pack.h"
#include "kernels/workspace.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numeric>

namespace hesse {

namespace {

// Of directions, which are dense: so many together that the matrix products are large.
constexpr int64_t kProductBytes = int64_t{32} << 20;
constexpr int64_t kHeldBytes = 8 * kProductBytes;  // by a sweep of them
constexpr int64_t kStrip = int64_t{4} << 20;       // elements of H that are made dense before they are packed

int64_t seeds_of(const MaybeTensors& dxs) {
  for (const auto& dx : dxs) {
    if (dx) return dx->size(0);
  }
  return 1;
}

// Bytes that one dense direction makes a sweep hold at most, by the shapes of the graph.
int64_t bytes_of_direction(const Linearization& lin) {
  int64_t bytes = 0;
  for (const Tensor& x : lin.inputs) bytes += static_cast<int64_t>(x.nbytes());
  std::vector<bool> kept(lin.graph.slots.size(), false);
  for (const Step& step : lin.graph.steps) {
    for (const int i : step.in) {
      if (i >= 0 && step.rule->curve) kept[i] = true;
    }
  }
  for (size_t s = 0; s < kept.size(); ++s) {
    const Slot& slot = lin.graph.slots[s];
    if (kept[s]) bytes += numel_of(slot.shape) * static_cast<int64_t>(slot.options.dtype().itemsize());
  }
  return bytes;
}

Seeds directions(const Linearization& lin, const MaybeTensors& dxs, int64_t begin, int64_t end) {
  return [&lin, &dxs, begin, end](std::vector<Tangent>& slots) {
    for (size_t i = 0; i < dxs.size(); ++i) {
      const int slot = lin.graph.inputs[i];
      if (slot < 0 || !dxs[i] || !lin.graph.slots[slot].curved_above) continue;
      const bool all = begin == 0 && end == dxs[i]->size(0);
      Tangent t = from_dense(all ? *dxs[i] : dxs[i]->slice(0, begin, end), end - begin);
      for (Term& term : t.terms) term.owned = false;  // the caller's memory
      accumulate(slots[slot], std::move(t));
    }
  };
}

std::vector<Tensor> dense_rows(const std::vector<Tangent>& tangents) {
  std::vector<Tensor> rows;
  for (const Tangent& t : tangents) rows.push_back(dense(t));
  return rows;
}

Tensor new_rows(const Linearization& lin, size_t i, int64_t K) {
  Shape size{K};
  size.append(lin.inputs[i].sizes().begin(), lin.inputs[i].sizes().end());
  return kernels::fresh(size, lin.inputs[i].options().requires_grad(std::nullopt));
}

// Collects the rows of chunks; those of a single chunk are the result as they are.
class Rows {
 public:
  Rows(const Linearization& lin, int64_t K) : lin_(lin), K_(K) {}

  void add(const std::vector<Tangent>& tangents, int64_t begin, int64_t end) {
    for (const Tangent& t : tangents) parts_.push_back(dense(t));
    if (end - begin == K_) return;
    if (begin == 0 && !lin_.create_graph) {
      for (size_t i = 0; i < lin_.inputs.size(); ++i) whole_.push_back(new_rows(lin_, i, K_));
    }
    if (whole_.empty()) return;
    for (size_t i = 0; i < whole_.size(); ++i) whole_[i].slice(0, begin, end).copy_(parts_[i]);
    parts_.clear();
  }
  // Each in memory of its own: a row may be a direction, or a tensor of func's, as it is.
  std::vector<Tensor> take() {
    for (Tensor& part : parts_) {
      if (part.storage().use_count() > 1) part = part.clone();
    }
    if (!whole_.empty() || parts_.size() == lin_.inputs.size()) return whole_.empty() ? parts_ : whole_;
    const size_t n = lin_.inputs.size();
    std::vector<Tensor> all;
    for (size_t i = 0; i < n; ++i) {
      std::vector<Tensor> column;
      for (size_t p = i; p < parts_.size(); p += n) column.push_back(parts_[p]);
      all.push_back(column.empty() ? new_rows(lin_, i, 0) : at::cat(column));
    }
    return all;
  }

 private:
  const Linearization& lin_;
  int64_t K_;
  std::vector<Tensor> parts_;  // of the chunks, one per input
  std::vector<Tensor> whole_;
};

}  // namespace

std::vector<Tensor> push(Linearization& lin, const MaybeTensors& dxs, SweepReport& report) {
  const Recording recording(lin.create_graph);
  const LedgerScope scope(report.ledger);
  const int64_t K = seeds_of(dxs);
  auto seeds = [&](std::vector<Tangent>& slots) {
    for (size_t i = 0; i < dxs.size(); ++i) {
      const int slot = lin.graph.inputs[i];
      if (slot >= 0 && dxs[i]) accumulate(slots[slot], from_dense(*dxs[i], K));
    }
  };
  return dense_rows(sweep_forward(lin, K, seeds));
}

std::vector<Tensor> pull(Linearization& lin, const MaybeTensors& dgys, SweepReport& report) {
  const Recording recording(lin.create_graph);
  const LedgerScope scope(report.ledger);
  const int64_t K = seeds_of(dgys);
  std::vector<Tangent> seeds;
  for (const auto& dgy : dgys) seeds.push_back(dgy ? from_dense(*dgy, K) : Tangent());
  return dense_rows(sweep_back(lin, K, std::move(seeds)));
}

std::vector<Tensor> products(Linearization& lin, const MaybeTensors& dxs, SweepReport& report) {
  const Recording recording(lin.create_graph);
  const int64_t K = seeds_of(dxs);
  Rows rows(lin, K);
  auto sweep = [&](int64_t begin, int64_t end) {
    return sweep_hessian(lin, end - begin, directions(lin, dxs, begin, end), {});
  };
  auto add = [&](std::vector<Tangent> tangents, int64_t begin, int64_t end) {
    rows.add(tangents, begin, end);
  };
  Chunks chunks;
  chunks.device = lin.inputs[0].device();
  if (K == 1) {
    chunks.size = 1;
  } else {
    const int64_t fit = std::max<int64_t>(1, kProductBytes / std::max<int64_t>(bytes_of_direction(lin), 1));
    const int64_t pieces = std::max<int64_t>(1, (K + fit - 1) / fit);
    chunks.most = (K + pieces - 1) / pieces;
    chunks.budget = kHeldBytes;
  }
  in_chunks(0, K, chunks, report, sweep, add);
  return rows.take();
}

namespace {

// Of a sweep whose seeds all meet each other, and so go all at once.
Chunks uncut(const Linearization& lin) {
  Chunks chunks;
  chunks.device = lin.inputs[0].device();
  chunks.budget = kHeldBytes;
  return chunks;
}

}  // namespace

Tensor quadratic(Linearization& lin, const MaybeTensors& dxs, SweepReport& report) {
  const Recording recording(lin.create_graph);
  const int64_t K = seeds_of(dxs);
  const auto options = lin.inputs[0].options().requires_grad(std::nullopt);
  if (K == 0) return at::zeros({0, 0}, options);
  Tensor form;
  const bool done = fits(uncut(lin), report,
                         [&] { form = sweep_quadratic(lin, K, K, directions(lin, dxs, 0, K)).squeeze(0); });
  if (done) return form;
  form = at::zeros({K, K}, options);
  const std::vector<Tensor> rows = products(lin, dxs, report);
  for (size_t i = 0; i < dxs.size(); ++i) {
    if (!dxs[i]) continue;
    const Tensor of_input =
        rows[i].reshape({K, -1}).matmul(dxs[i]->to(rows[i].scalar_type()).reshape({K, -1}).t());
    form = form + of_input.to(options);
  }
  return form;
}

std::vector<Tensor> rows(Linearization& lin, const std::vector<int64_t>& index, SweepReport& report) {
  const Recording recording(lin.create_graph);
  const Layout layout(lin.inputs);
  const auto R = static_cast<int64_t>(index.size());
  Rows result(lin, R);
  auto sweep = [&](int64_t begin, int64_t end) {
    std::vector<int64_t> some(index.begin() + begin, index.begin() + end);
    return sweep_hessian(lin, end - begin, identity(lin, layout, std::move(some)), {});
  };
  auto add = [&](std::vector<Tangent> tangents, int64_t begin, int64_t end) {
    result.add(tangents, begin, end);
  };
  Chunks chunks = chunks_on(lin.inputs[0].device());
  in_chunks(0, R, chunks, report, sweep, add);
  return result.take();
}

std::vector<Tensor> hessians(Linearization& lin, const std::vector<std::vector<Tensor>>& seeds,
                             SweepReport& report) {
  const Recording recording(lin.create_graph);
  const Layout layout(lin.inputs);
  const int64_t N = layout.total;
  std::vector<Tensor> matrices;
  const bool done = fits(uncut(lin), report, [&] {
    std::vector<Seeding> seedings = seedings_of(lin, seeds);
    matrices = sweep_quadratic(lin, N, N, identity(lin, layout, 0, N), seedings);
  });
  if (done) {
    for (Tensor& m : matrices) m = m.squeeze(0);
    return matrices;
  }
  std::vector<int64_t> all(N);
  std::iota(all.begin(), all.end(), 0);
  for (const std::vector<Tensor>& s : seeds) {
    seed(lin, s);
    std::vector<Tensor> columns = rows(lin, all, report);
    for (Tensor& c : columns) c = c.reshape({N, -1});
    matrices.push_back(at::cat(columns, 1));
  }
  return matrices;
}

std::vector<Tensor> diagonal(Linearization& lin, SweepReport& report) {
  const Recording recording(lin.create_graph);
  const Layout layout(lin.inputs);
  std::vector<std::vector<Tensor>> parts(lin.inputs.size());
  auto sweep = [&](int64_t begin, int64_t end) {
    return sweep_quadratic(lin, end - begin, 1, identity(lin, layout, begin, end)).view({end - begin});
  };
  for (size_t i = 0; i < lin.inputs.size(); ++i) {
    in_chunks(layout.begin[i], layout.end(i), chunks_of(lin, layout, std::nullopt), report, sweep,
              [&](Tensor part, int64_t, int64_t) { parts[i].push_back(std::move(part)); });
  }
  std::vector<Tensor> result;
  for (size_t i = 0; i < lin.inputs.size(); ++i) {
    const Tensor& x = lin.inputs[i];
    Tensor flat = parts[i].size() == 1 ? parts[i][0]
                  : parts[i].empty()   ? at::zeros({0}, x.options().requires_grad(std::nullopt))
                                       : at::cat(parts[i]);
    result.push_back(flat.to(x.options().requires_grad(std::nullopt)).view(x.sizes()));
  }
  return result;
}

Tensor lower_triangle(Linearization& lin, SweepReport& report) {
  const Recording recording(lin.create_graph);
  const Layout layout(lin.inputs);
  const int64_t N = layout.total;
  const bool symmetric = lin.graph.symmetric;
  const Tensor packed = at::zeros({N * (N + 1) / 2}, lin.inputs[0].options().requires_grad(std::nullopt));
  auto sweep = [&](int64_t begin, int64_t end) {
    const int64_t K = end - begin;
    Asked asked;
    for (size_t j = 0; symmetric && j < lin.inputs.size(); ++j) {
      asked.end.push_back(std::clamp<int64_t>(layout.end(j) - begin, 0, K));
      if (!lin.create_graph) asked.begin.push_back(layout.begin[j] - begin);
    }
    return sweep_hessian(lin, K, identity(lin, layout, begin, end), asked);
  };
  // Of a symmetric H, seeds are columns of the lower triangle: only elements from theirs on are there.
  auto add = [&](std::vector<Tangent> tangents, int64_t begin, int64_t end) {
    for (size_t j = 0; j < tangents.size(); ++j) {
      const bool beside = symmetric ? layout.end(j) <= begin : layout.begin[j] >= end;
      if (beside || tangents[j].zero()) continue;
      const Tensor strip = dense(tangents[j]).reshape({end - begin, -1});
      kernels::pack_lower(packed, symmetric ? strip.t() : strip, symmetric ? layout.begin[j] : begin,
                          symmetric ? begin : layout.begin[j]);
    }
  };
  Chunks chunks = chunks_of(lin, layout, std::nullopt);
  chunks.most = std::max<int64_t>(1, kStrip / std::max<int64_t>(N, 1));
  in_chunks(0, N, chunks, report, sweep, add);
  return packed;
}

}  // namespace hesse
