#include "chunks.h"

#include "memory.h"
#include "reads.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>

namespace hesse {

namespace {

// Seeds are cut into chunks when a sweep would hold more seed-sized memory than this at once ...
constexpr int64_t kBudgetBytes = int64_t{32} << 20;
// ... on a device, more than this and than half of what it has left ...
constexpr int64_t kDeviceBytes = int64_t{256} << 20;
// ... and, down to kCacheSeeds, so that each tangent stays in the processor's cache.
constexpr int64_t kPieceBytes = int64_t{3} << 20;
constexpr int64_t kCacheSeeds = 256;
// Rows of the identity that are not consecutive are terms of their own, up to so many.
constexpr size_t kRuns = 16;

// It may be shorter or longer by a half.
int64_t aligned_end(const std::vector<Tensor>& inputs, const Layout& layout, int64_t begin, int64_t chunk) {
  const int64_t end = std::min(begin + chunk, layout.total);
  if (end == layout.total) return end;
  const int i = layout.input_of(end);
  int64_t stride = layout.size[i];
  for (int64_t d = 0; d <= inputs[i].dim(); ++d) {
    const int64_t aligned = layout.begin[i] + (end - layout.begin[i] + stride / 2) / stride * stride;
    if (2 * (aligned - begin) >= chunk && 2 * (aligned - begin) <= 3 * chunk) return aligned;
    if (d < inputs[i].dim()) stride /= inputs[i].size(d);
  }
  return end;
}

// Rows [begin, end) of the identity at the inputs, from seed `at` on.
void add_rows(const Linearization& lin, const Layout& layout, int64_t begin, int64_t end, int64_t at,
              std::vector<Tangent>& slots) {
  for (size_t i = 0; i < lin.inputs.size(); ++i) {
    const int64_t from = std::max(begin, layout.begin[i]) - layout.begin[i];
    const int64_t to = std::min(end, layout.end(i)) - layout.begin[i];
    const int slot = lin.graph.inputs[i];
    if (slot < 0 || from >= to || !lin.graph.slots[slot].curved_above) continue;
    for (const auto& [a, b] : seed_boxes(lin.graph.slots[slot].shape, from, to)) {
      add_identity(slots[slot], a, b, at + layout.begin[i] + a - begin);
    }
  }
}

}  // namespace

Layout::Layout(const std::vector<Tensor>& inputs) {
  for (const Tensor& x : inputs) {
    begin.push_back(total);
    size.push_back(x.numel());
    total += x.numel();
  }
}

int Layout::input_of(int64_t k) const {
  return static_cast<int>(std::upper_bound(begin.begin(), begin.end(), k) - begin.begin()) - 1;
}

Seeds identity(const Linearization& lin, const Layout& layout, int64_t begin, int64_t end) {
  return [&lin, &layout, begin, end](std::vector<Tangent>& slots) {
    add_rows(lin, layout, begin, end, 0, slots);
  };
}

Seeds identity(const Linearization& lin, const Layout& layout, std::vector<int64_t> rows) {
  return [&lin, &layout, rows = std::move(rows)](std::vector<Tangent>& slots) {
    const auto K = static_cast<int64_t>(rows.size());
    std::vector<std::pair<int64_t, int64_t>> runs;  // of seeds whose rows are consecutive
    for (int64_t r = 0; r < K; ++r) {
      const bool goes_on = r > 0 && rows[r] == rows[r - 1] + 1;
      if (goes_on) {
        runs.back().second = r + 1;
      } else {
        runs.emplace_back(r, r + 1);
      }
    }
    if (runs.size() <= kRuns) {
      for (const auto& [a, b] : runs) add_rows(lin, layout, rows[a], rows[b - 1] + 1, a, slots);
      return;
    }
    for (size_t i = 0; i < lin.inputs.size(); ++i) {
      const int slot = lin.graph.inputs[i];
      if (slot < 0 || !lin.graph.slots[slot].curved_above) continue;
      std::vector<int64_t> seed, element;
      for (int64_t r = 0; r < K; ++r) {
        if (rows[r] < layout.begin[i] || rows[r] >= layout.end(i)) continue;
        seed.push_back(r);
        element.push_back(rows[r] - layout.begin[i]);
      }
      if (seed.empty()) continue;
      const Slot& at = lin.graph.slots[slot];
      ledger().reserve(K * layout.size[i], at.options.dtype().itemsize());
      Tensor dense = at::zeros({K, layout.size[i]}, at.options);
      const auto index = [&](const std::vector<int64_t>& v) {
        return constant([&] { return at::tensor(v, at::kLong).to(dense.device(), /*non_blocking=*/true); });
      };
      dense.index_put_({index(seed), index(element)}, at::ones({}, at.options));
      Shape shape{K};
      shape.append(at.shape.begin(), at.shape.end());
      accumulate(slots[slot], from_dense(dense.view(shape), K));
    }
  };
}

Chunks chunks_on(c10::Device device) {
  Chunks chunks;
  chunks.device = device;
  chunks.cached = device.is_cpu();
  return chunks;
}

Chunks chunks_of(const Linearization& lin, const Layout& layout, std::optional<int64_t> size) {
  Chunks chunks = chunks_on(lin.inputs[0].device());
  chunks.size = size;
  if (!size) {
    chunks.cut = [&lin, &layout](int64_t begin, int64_t chunk) {
      return aligned_end(lin.inputs, layout, begin, chunk);
    };
  }
  return chunks;
}

namespace {

int64_t budget_of(const Chunks& chunks) {
  if (chunks.size) return 0;
  return chunks.budget.value_or(chunks.device.is_cpu() ? kBudgetBytes : kDeviceBytes);
}

// Half of what the device has left: the other is for what the ledger does not see, and for others.
std::function<int64_t()> room_on(const Chunks& chunks, int64_t result_bytes) {
  return [device = chunks.device, result_bytes] {
    return std::max<int64_t>(free_bytes(device).value_or(0) - result_bytes, 0) / 2;
  };
}

// The limits of a ledger while a sweep runs.
class Limits {
 public:
  Limits(Ledger& l, int64_t budget, int64_t piece, std::function<int64_t()> room) : ledger_(l) {
    ledger_.budget_bytes = budget;
    ledger_.piece_bytes = piece;
    ledger_.room = std::move(room);
  }
  ~Limits() {
    ledger_.budget_bytes = ledger_.piece_bytes = 0;
    ledger_.room = {};
  }
  Limits(const Limits&) = delete;
  Limits& operator=(const Limits&) = delete;

 private:
  Ledger& ledger_;
};

}  // namespace

bool fits(const Chunks& chunks, SweepReport& report, const std::function<void()>& sweep) {
  Ledger& ledger = report.ledger;
  const LedgerScope scope(ledger);
  const Ledger before = ledger;
  try {
    const Limits limits(ledger, budget_of(chunks), 0, room_on(chunks, chunks.result_bytes));
    sweep();
    return true;
  } catch (const ChunkTooLarge&) {
  } catch (const c10::Error& e) {
    if (!is_out_of_memory(e)) throw;
  }
  ledger = before;
  return false;
}

void run_chunks(int64_t begin, int64_t total, const Chunks& chunks, SweepReport& report, const Stretch& sweep,
                const Stretch& consume) {
  Ledger& ledger = report.ledger;
  const LedgerScope scope(ledger);
  int64_t budget = budget_of(chunks), result_bytes = chunks.result_bytes;
  int64_t chunk = chunks.size.value_or(std::max<int64_t>(total - begin, 1));
  if (chunks.most) chunk = std::min(chunk, *chunks.most);
  while (begin < total) {
    const int64_t end = std::min(chunks.cut ? chunks.cut(begin, chunk) : begin + chunk, total);
    const int64_t K = end - begin;
    const bool cached = chunks.cached && !chunks.size && K >= 2 * kCacheSeeds;
    const Ledger before = ledger;
    try {
      const Limits limits(ledger, budget, cached ? kPieceBytes : 0, room_on(chunks, result_bytes));
      sweep(begin, end);
    } catch (const ChunkTooLarge& e) {
      ledger = before;
      if (K <= chunks.least) {
        budget = 0;
      } else {
        const int64_t least = std::min(K / 2, cached ? kCacheSeeds : int64_t{1});
        chunk = std::clamp<int64_t>(K * e.allowed_bytes / (2 * e.wanted_bytes), least, K / 2);
        if (!cached && budget > 0) budget = std::max(budget, e.allowed_bytes);
      }
      continue;
    } catch (const c10::Error& e) {
      ledger = before;
      if (K <= chunks.least || !is_out_of_memory(e)) throw;
      chunk = K / 2;
      continue;
    }
    consume(begin, end);
    result_bytes = 0;
    report.chunk_size = std::max(report.chunk_size, K);
    ++report.chunks;
    begin = end;
  }
}

}  // namespace hesse
