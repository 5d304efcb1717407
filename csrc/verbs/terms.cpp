#include "verbs/terms.h"

#include "ledger.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace hesse {

void place_or_densify(const Tangent& t, Term& term, Placement& p, bool scattered) {
  const bool may =
      scattered || std::none_of(term.dims.begin(), term.dims.end(), [](const Dim& d) { return d.v; });
  if (may && place(term, t.shape, p)) return;
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
