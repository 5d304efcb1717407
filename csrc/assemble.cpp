#include "assemble.h"

#include "kernels/mirror.h"
#include "kernels/workspace.h"

#include <ATen/ATen.h>
#include <c10/util/Exception.h>

#include <algorithm>

namespace hesse {

namespace {

// Seeds are cut into chunks when a sweep would hold more seed-sized memory than this at once ...
constexpr int64_t kBudgetBytes = int64_t{32} << 20;
// ... and, down to kCacheSeeds, so that each tangent stays in the processor's cache.
constexpr int64_t kPieceBytes = int64_t{3} << 20;
constexpr int64_t kCacheSeeds = 256;

struct Layout {
  std::vector<int64_t> size, begin;  // per input: elements, first seed
  int64_t total = 0;
  int input_of(int64_t k) const {
    return static_cast<int>(std::upper_bound(begin.begin(), begin.end(), k) - begin.begin()) - 1;
  }
};

Layout layout_of(const std::vector<Tensor>& inputs) {
  Layout layout;
  for (const Tensor& x : inputs) {
    layout.begin.push_back(layout.total);
    layout.size.push_back(x.numel());
    layout.total += x.numel();
  }
  return layout;
}

// Where a chunk of about `chunk` seeds from `begin` on best ends: at the border of an input or of one of its
// axes, so that its seeds are few boxes. It may be shorter or longer by a half.
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

// One block under construction, rows of input i by elements of input j.
struct Block {
  Tensor flat;            // [N_i, N_j]
  bool mirrored = false;  // filled from its transpose at the end
  bool upper = false;     // a diagonal block of which only the upper triangle was computed

  void open(int64_t rows, int64_t cols, const at::TensorOptions& options) {
    if (!flat.defined()) flat = kernels::fresh({rows, cols}, options).zero_();
  }
};

struct Assembly {
  const Linearization& lin;
  const Layout& layout;
  bool symmetric;
  std::vector<std::vector<Block>> blocks;

  Assembly(const Linearization& l, const Layout& y, bool s)
      : lin(l), layout(y), symmetric(s), blocks(l.inputs.size(), std::vector<Block>(l.inputs.size())) {}

  at::TensorOptions block_options(size_t j) const {
    return lin.inputs[j].options().requires_grad(std::nullopt);
  }
  void add(Tangent& t, size_t j, int64_t chunk_begin);
  void add_term(const Term& term, size_t i, size_t j, bool whole_chunk);
  void finish(Blocks& out, bool dtype_of_row);
};

Term transposed(const Term& t) {
  Term m = t;
  for (Dim& d : m.dims) {
    std::swap(d.ks, d.vs);
    std::swap(d.k, d.v);
  }
  std::swap(m.k0, m.v0);
  return m;
}

// The term's own memory, if it is the block exactly: rows by columns, nothing lazy, nobody else's.
Tensor adoptable(const Term& t, int64_t rows, int64_t cols) {
  if (t.coef.defined() || !t.core.defined() || t.alpha != 1.0 || t.k0 != 0 || t.v0 != 0 || t.indexed())
    return {};
  if (t.core.numel() != rows * cols || t.core.storage().use_count() > 1 || t.core.use_count() > 1) return {};
  if (static_cast<int64_t>(t.core.storage().nbytes()) != t.core.numel() * t.core.element_size()) return {};
  for (int64_t d = 0; d < t.rank(); ++d) {
    if (t.core.stride(d) != t.dims[d].ks * cols + t.dims[d].vs) return {};
  }
  return t.core.as_strided({rows, cols}, {cols, 1}, 0);
}

void Assembly::add_term(const Term& term, size_t i, size_t j, bool whole) {
  const int64_t rows = layout.size[i], cols = layout.size[j];
  Block& block = blocks[i][j];
  const at::TensorOptions options = block_options(j);
  if (!block.flat.defined() && whole && !lin.create_graph) {
    block.flat = adoptable(term, rows, cols);
    if (block.flat.defined()) return;
  }
  if (!block.flat.defined() && term.coverage() == rows * cols && !term.indexed() && !lin.create_graph) {
    block.flat = kernels::fresh({rows, cols}, options);
    write_into(block.flat, term, 0, cols);
    return;
  }
  block.open(rows, cols, options);
  add_into(block.flat, term, 0, cols);
}

void Assembly::add(Tangent& t, size_t j, int64_t chunk_begin) {
  if (t.upper) blocks[j][j].upper = true;
  // Terms that fill a block come first: the block can be made of them.
  std::stable_sort(t.terms.begin(), t.terms.end(),
                   [](const Term& a, const Term& b) { return a.coverage() > b.coverage(); });
  for (Term& whole : t.terms) {
    whole.k0 += chunk_begin;
    auto [first, last] = whole.seed_range();
    const int first_input = layout.input_of(first), last_input = layout.input_of(last - 1);
    for (int i = first_input; i <= last_input; ++i) {
      if (symmetric && i > static_cast<int>(j)) break;
      Term part = first_input == last_input ? std::move(whole) : whole;
      if (first_input != last_input) {
        // Only a box of consecutive seeds spans inputs: its one seed dimension is cut at their border.
        const int64_t from = std::max(first, layout.begin[i]);
        const int64_t to = std::min(last, layout.begin[i] + layout.size[i]);
        int64_t d = 0;
        while (d < part.rank() && part.dims[d].ks == 0) ++d;
        TORCH_INTERNAL_ASSERT(d < part.rank() && part.dims[d].ks == 1,
                              "hesse: a term spans inputs without being a box");
        if (part.core.defined() && part.core.size(d) > 1)
          part.core = part.core.narrow(d, from - first, to - from);
        part.k0 = from;
        part.dims[d].n = to - from;
      }
      part.k0 -= layout.begin[i];
      const bool mirror = symmetric && i < static_cast<int>(j);
      // A large term is mirrored with the whole block at the end, a small one right here.
      const bool dense_term = 4 * part.coverage() > layout.size[i] * layout.size[j];
      if (mirror && dense_term) blocks[j][i].mirrored = true;
      if (mirror && !blocks[j][i].mirrored) add_term(transposed(part), j, i, false);
      add_term(part, i, j, true);
    }
  }
  t.terms.clear();
}

void Assembly::finish(Blocks& out, bool dtype_of_row) {
  const size_t n = lin.inputs.size();
  out.assign(n, std::vector<Tensor>(n));
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < n; ++j) {
      Block& block = blocks[i][j];
      if (block.upper && block.flat.defined()) kernels::mirror_upper(block.flat);
      const at::ScalarType dtype = lin.inputs[dtype_of_row ? i : j].scalar_type();
      Tensor flat = block.flat;
      if (block.mirrored) {
        flat = kernels::fresh({layout.size[i], layout.size[j]}, block_options(j).dtype(dtype));
        flat.copy_(blocks[j][i].flat.t());
      }
      if (!flat.defined()) {
        flat = at::zeros({layout.size[i], layout.size[j]}, block_options(j));
      }
      Shape shape(lin.inputs[i].sizes().begin(), lin.inputs[i].sizes().end());
      shape.append(lin.inputs[j].sizes().begin(), lin.inputs[j].sizes().end());
      out[i][j] = flat.to(dtype).view(shape);
    }
  }
}

}  // namespace

Blocks hessian(Linearization& lin, const HessianOptions& options, HessianReport& report) {
  const Recording recording(lin.create_graph);
  const Layout layout = layout_of(lin.inputs);
  // Mirroring saves work between inputs; with one dtype only, or a block would be rounded twice.
  bool symmetric = lin.graph.symmetric && !lin.create_graph;
  for (const Tensor& x : lin.inputs) symmetric = symmetric && x.scalar_type() == lin.inputs[0].scalar_type();

  int64_t chunk = options.chunk_size.value_or(std::max<int64_t>(layout.total, 1));
  Ledger& ledger = report.ledger;
  const LedgerScope scope(ledger);
  ledger.budget_bytes = options.chunk_size ? 0 : kBudgetBytes;
  const bool cached = !options.chunk_size && lin.inputs[0].device().is_cpu();

  Assembly assembly(lin, layout, symmetric);
  int64_t begin = 0;
  while (begin < layout.total) {
    const int64_t end = options.chunk_size ? std::min(begin + chunk, layout.total)
                                           : aligned_end(lin.inputs, layout, begin, chunk);
    const int64_t K = end - begin;
    Half half;
    if (symmetric) {
      for (size_t j = 0; j < lin.inputs.size(); ++j) {
        half.begin.push_back(layout.begin[j] - begin);
        half.end.push_back(std::clamp<int64_t>(layout.begin[j] + layout.size[j] - begin, 0, K));
      }
    }
    auto seeds = [&](std::vector<Tangent>& slots) {
      for (size_t i = 0; i < lin.inputs.size(); ++i) {
        const int64_t from = std::max(begin, layout.begin[i]) - layout.begin[i];
        const int64_t to = std::min(end, layout.begin[i] + layout.size[i]) - layout.begin[i];
        const int slot = lin.graph.inputs[i];
        if (slot < 0 || from >= to || !lin.graph.slots[slot].curved_above) continue;
        for (const auto& [a, b] : seed_boxes(lin.graph.slots[slot].shape, from, to)) {
          add_identity(slots[slot], a, b, layout.begin[i] + a - begin);
        }
      }
    };
    ledger.piece_bytes = cached && K >= 2 * kCacheSeeds ? kPieceBytes : 0;
    const Ledger before = ledger;
    std::vector<Tangent> rows;
    try {
      rows = sweep_hessian(lin, K, seeds, half);
    } catch (const ChunkTooLarge& e) {
      ledger = before;
      if (K == 1) {
        ledger.budget_bytes = 0;  // one seed is the least there is
      } else {
        const int64_t least = ledger.piece_bytes ? kCacheSeeds : 1;
        chunk = std::clamp<int64_t>(K * e.allowed_bytes / (2 * e.wanted_bytes), least, K / 2);
      }
      continue;
    } catch (const c10::Error& e) {
      ledger = before;
      if (K == 1 || !is_out_of_memory(e)) throw;
      chunk = K / 2;
      continue;
    }
    // What is added to the blocks cannot be taken back: from here on an error is final.
    for (size_t j = 0; j < rows.size(); ++j) assembly.add(rows[j], j, begin);
    report.chunk_size = std::max(report.chunk_size, K);
    ++report.chunks;
    begin = end;
  }
  Blocks blocks;
  assembly.finish(blocks, options.dtype_of_row);
  return blocks;
}

}  // namespace hesse
