#include "verbs/terms.h"

#include "kernels/combine.h"
#include "ledger.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace hesse {

namespace {

// Values placed by index along dimension d become explicit along its axis: seeds by all places of it.
void spell_out(Term& term, int64_t d, bool seeded, const at::TensorOptions& options) {
  Dim& dim = term.dims[d];
  const Places places = *dim.v;
  Shape along(term.rank() + 1, 1);
  along[d] = dim.n;
  const Tensor index = places.index.view({dim.n, 1});
  along.back() = places.size;
  const Tensor there = at::zeros({dim.n, places.size}, options).scatter(1, index, 1).view(along);
  append_dim(term, {places.size, 0, dim.vs});
  fold_coef(term);
  if (seeded) ledger().reserve(term.stored() * places.size, there.element_size());
  term.core = term.core.defined() ? kernels::multiply(term.core, there) : there;
  term.owned = true;
  term.dims[d].vs = 0;
  term.dims[d].v = nullptr;
}

}  // namespace

void place_or_densify(const Tangent& t, Term& term, Placement& p, AxisTest scattered) {
  bool placed = place(term, t.shape, p);
  bool spelled = false;
  for (int64_t d = 0; placed && term.held && d < term.rank(); ++d) {
    if (!term.dims[d].v || (scattered && scattered(p.axis[d]))) continue;
    spell_out(term, d, t.K > 1, t.options.requires_grad(std::nullopt));
    spelled = true;
  }
  if (spelled) {
    ledger().densified.insert(ledger().op);
    placed = place(term, t.shape, p);
  }
  if (placed) return;
  ledger().densified.insert(ledger().op);
  term = densify(t, term);
  TORCH_INTERNAL_ASSERT(place(term, t.shape, p));
}

void move_axes(Term& term, const Placement& p, c10::IntArrayRef to, c10::IntArrayRef shape) {
  const Shape strides = row_major(shape);
  for (int64_t d = 0; d < term.rank(); ++d) {
    const int64_t a = p.axis[d];
    term.dims[d].vs = a >= 0 && to[a] >= 0 ? p.step[d] * strides[to[a]] : 0;
    if (term.dims[d].vs == 0) term.dims[d].v = nullptr;
  }
  term.v0 = 0;
  for (size_t a = 0; a < to.size(); ++a) {
    if (to[a] >= 0) term.v0 += p.offset[a] * strides[to[a]];
  }
}

void append_dim(Term& term, Dim dim) {
  term.dims.push_back(dim);
  if (term.coef.defined()) term.coef = term.coef.unsqueeze(-1);
  if (term.core.defined()) term.core = term.core.unsqueeze(-1);
}

namespace {

bool same_memory(const Tensor& a, const Tensor& b) { return a.defined() && b.defined() && a.is_alias_of(b); }

}  // namespace

void claim(Term& term, const Tensor& before, const Tensor& known) {
  if (!term.core.defined() || same_memory(term.core, known)) {
    term.owned = false;
  } else if (!same_memory(term.core, before)) {
    term.owned = true;
  }
}

Tensor windowed(const Tensor& c, const Window& w) {
  if (c.sizes() == c10::IntArrayRef(w.size) && c.strides() == c10::IntArrayRef(w.stride) &&
      c.storage_offset() == w.offset) {
    return c;
  }
  return c.as_strided(w.size, w.stride, w.offset);
}

}  // namespace hesse
