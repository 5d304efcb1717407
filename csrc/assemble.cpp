#include "assemble.h"

#include "kernels/mirror.h"
#include "kernels/workspace.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace hesse {

namespace {

// One block under construction, rows of input i by elements of input j.
struct Block {
  Tensor flat;            // [N_i, N_j]
  int64_t written = 0;    // rows that hold what they should, from the first on; the others are not even zero
  bool mirrored = false;  // filled from its transpose at the end
  bool upper = false;     // a diagonal block of which only the upper triangle was computed
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
  void add(Tangent& t, size_t j, int64_t chunk_begin, int64_t chunk_end);
  void add_terms(c10::ArrayRef<Term> terms, size_t i, size_t j, int64_t end);
  Tensor finished(size_t i, size_t j, bool dtype_of_row);
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

// Rows before `end` then hold what these terms add to them. Zeros are written along with the terms: rows that
// are new, whether or not any term is there, are written once.
void Assembly::add_terms(c10::ArrayRef<Term> terms, size_t i, size_t j, int64_t end) {
  const int64_t rows = layout.size[i], cols = layout.size[j];
  Block& block = blocks[i][j];
  if (lin.create_graph) end = rows;
  size_t first = 0;
  if (!block.flat.defined()) {
    if (end == rows && !lin.create_graph) block.flat = adoptable(terms[0], rows, cols);
    if (block.flat.defined()) {
      block.written = rows;
      first = 1;
    } else {
      block.flat = kernels::fresh({rows, cols}, block_options(j));
    }
  }
  if (block.written < end) {
    const bool whole = block.written == 0 && end == rows;
    write_into(whole ? block.flat : block.flat.slice(0, block.written, end), terms, block.written, cols);
    block.written = end;
    return;
  }
  for (; first < terms.size(); ++first) add_into(block.flat, terms[first], 0, cols);
}

void Assembly::add(Tangent& t, size_t j, int64_t chunk_begin, int64_t chunk_end) {
  if (t.upper) blocks[j][j].upper = true;
  // Terms that fill a block come first: the block can be made of them.
  std::stable_sort(t.terms.begin(), t.terms.end(),
                   [](const Term& a, const Term& b) { return a.coverage() > b.coverage(); });
  if (lin.inputs.size() == 1) {  // nothing to sort out
    for (Term& term : t.terms) term.k0 += chunk_begin;
    if (!t.zero()) add_terms(t.terms, 0, 0, chunk_end);
    t.terms.clear();
    return;
  }
  std::vector<std::vector<Term>> of_rows(lin.inputs.size()), of_columns(symmetric ? j : 0);
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
      if (mirror && !blocks[j][i].mirrored) of_columns[i].push_back(transposed(part));
      of_rows[i].reserve(t.terms.size());
      of_rows[i].push_back(std::move(part));
    }
  }
  t.terms.clear();
  for (size_t i = 0; i < of_columns.size(); ++i) {
    if (of_columns[i].empty() || blocks[j][i].mirrored) continue;
    add_terms(of_columns[i], j, i, layout.size[j]);
  }
  of_columns.clear();  // what shares a core keeps it from becoming the block
  for (size_t i = 0; i < of_rows.size(); ++i) {
    if (of_rows[i].empty()) continue;
    add_terms(of_rows[i], i, j, std::min(chunk_end, layout.end(i)) - layout.begin[i]);
  }
}

Tensor Assembly::finished(size_t i, size_t j, bool dtype_of_row) {
  Block& block = blocks[i][j];
  if (block.flat.defined() && block.written < layout.size[i]) block.flat.slice(0, block.written).zero_();
  if (block.upper && block.flat.defined()) kernels::mirror_upper(block.flat);
  const at::ScalarType dtype = lin.inputs[dtype_of_row ? i : j].scalar_type();
  Tensor flat = block.flat;
  if (block.mirrored) {
    flat = kernels::fresh({layout.size[i], layout.size[j]}, block_options(j).dtype(dtype));
    flat.copy_(blocks[j][i].flat.t());
  }
  if (!flat.defined()) flat = at::zeros({layout.size[i], layout.size[j]}, block_options(j));
  Shape shape(lin.inputs[i].sizes().begin(), lin.inputs[i].sizes().end());
  shape.append(lin.inputs[j].sizes().begin(), lin.inputs[j].sizes().end());
  return flat.to(dtype).view(shape);
}

}  // namespace

Blocks hessian(Linearization& lin, const HessianOptions& options, SweepReport& report) {
  const Recording recording(lin.create_graph);
  const Layout layout(lin.inputs);
  // Mirroring saves work between inputs, on one device; with one dtype only, or a block would be rounded
  // twice.
  bool symmetric = lin.graph.symmetric && !lin.create_graph;
  for (const Tensor& x : lin.inputs) {
    symmetric =
        symmetric && x.scalar_type() == lin.inputs[0].scalar_type() && x.device() == lin.inputs[0].device();
  }

  Assembly assembly(lin, layout, symmetric);
  auto sweep = [&](int64_t begin, int64_t end) {
    const int64_t K = end - begin;
    Asked asked;
    if (symmetric) {
      for (size_t j = 0; j < lin.inputs.size(); ++j) {
        asked.begin.push_back(layout.begin[j] - begin);
        asked.end.push_back(std::clamp<int64_t>(layout.end(j) - begin, 0, K));
      }
    }
    return sweep_hessian(lin, K, identity(lin, layout, begin, end), asked);
  };
  auto add = [&](std::vector<Tangent> rows, int64_t begin, int64_t end) {
    for (size_t j = 0; j < rows.size(); ++j) assembly.add(rows[j], j, begin, end);
  };
  Chunks chunks = chunks_of(lin, layout, options.chunk_size);
  chunks.result_bytes = layout.total * layout.total * static_cast<int64_t>(lin.inputs[0].element_size());
  in_chunks(0, layout.total, chunks, report, sweep, add);
  Blocks blocks(lin.inputs.size());
  for (size_t i = 0; i < lin.inputs.size(); ++i) {
    for (size_t j = 0; j < lin.inputs.size(); ++j) {
      blocks[i].push_back(assembly.finished(i, j, options.dtype_of_row));
    }
  }
  return blocks;
}

Tensor block(Linearization& lin, size_t i, size_t j, SweepReport& report) {
  const Recording recording(lin.create_graph);
  const Layout layout(lin.inputs);
  const bool upper = i <= j && lin.graph.symmetric && !lin.create_graph;
  Assembly assembly(lin, layout, /*symmetric=*/false);
  auto sweep = [&](int64_t begin, int64_t end) {
    Asked asked{{}, std::vector<int64_t>(lin.inputs.size(), 0)};
    asked.end[j] = end - begin;
    if (upper) {
      for (const int64_t b : layout.begin) asked.begin.push_back(b - begin);
    }
    return sweep_hessian(lin, end - begin, identity(lin, layout, begin, end), asked);
  };
  auto add = [&](std::vector<Tangent> rows, int64_t begin, int64_t end) {
    assembly.add(rows[j], j, begin, end);
  };
  in_chunks(layout.begin[i], layout.end(i), chunks_of(lin, layout, std::nullopt), report, sweep, add);
  return assembly.finished(i, j, /*dtype_of_row=*/false);
}

}  // namespace hesse
