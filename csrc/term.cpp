#include "term.h"

#include "kernels/combine.h"
#include "kernels/scatter.h"
#include "ledger.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace hesse {

int64_t numel_of(c10::IntArrayRef shape) {
  int64_t n = 1;
  for (int64_t s : shape) n *= s;
  return n;
}

Shape row_major(c10::IntArrayRef shape) {
  Shape strides(shape.size(), 1);
  for (int64_t a = static_cast<int64_t>(shape.size()) - 2; a >= 0; --a)
    strides[a] = strides[a + 1] * shape[a + 1];
  return strides;
}

bool Dim::operator==(const Dim& o) const {
  auto same = [](const auto& a, const auto& b) {
    return a == b || (a && b && a->size == b->size && same_factor(a->index, b->index));
  };
  return n == o.n && ks == o.ks && vs == o.vs && same(k, o.k) && same(v, o.v);
}

const Places* hold(Term& term, Tensor index, int64_t size) {
  term.held = std::make_shared<HeldPlaces>(HeldPlaces{{std::move(index), size}, term.held});
  return &term.held->places;
}

bool Term::indexed() const {
  return held && std::any_of(dims.begin(), dims.end(), [](const Dim& d) { return d.indexed(); });
}

int64_t Term::coverage() const {
  int64_t n = 1;
  for (const Dim& d : dims) n *= d.n;
  return n;
}

int64_t Term::stored() const {
  return (coef.defined() ? coef.numel() : 0) + (core.defined() ? core.numel() : 0);
}

std::pair<int64_t, int64_t> Term::seed_range() const {
  int64_t first = k0, last = k0;
  for (const Dim& d : dims) (d.ks >= 0 ? last : first) += (d.seed_extent() - 1) * d.ks;
  return {first, last + 1};
}

Shape sizes_of(const Term& t) {
  Shape s;
  for (const Dim& d : t.dims) s.push_back(d.n);
  return s;
}

bool same_factor(const Tensor& a, const Tensor& b) {
  if (!a.defined() || !b.defined()) return a.defined() == b.defined();
  if (a.is_same(b)) return true;
  if (a.requires_grad() || b.requires_grad()) return false;
  return a.is_alias_of(b) && a.storage_offset() == b.storage_offset() && a.scalar_type() == b.scalar_type() &&
         a.sizes() == b.sizes() && a.strides() == b.strides();
}

bool same_placement(const Term& a, const Term& b) {
  return a.k0 == b.k0 && a.v0 == b.v0 && a.dims.size() == b.dims.size() &&
         std::equal(a.dims.begin(), a.dims.end(), b.dims.begin());
}

bool place(Term& t, c10::IntArrayRef shape, Placement& p) {
  const Shape strides = row_major(shape);
  const int64_t axes = static_cast<int64_t>(shape.size());
  p.offset.assign(axes, 0);
  for (int64_t a = 0; a < axes; ++a) p.offset[a] = (t.v0 / strides[a]) % shape[a];
  c10::SmallVector<int64_t, 6> reach(p.offset);  // the largest index a term attains on each axis
  p.axis.clear();
  p.step.clear();
  for (int64_t d = 0; d < t.rank(); ++d) {
    const Dim dim = t.dims[d];
    if (dim.vs == 0) {
      p.axis.push_back(-1);
      p.step.push_back(0);
      continue;
    }
    int64_t a = 0;
    while (a < axes && (shape[a] == 1 || strides[a] > dim.vs)) ++a;
    if (a == axes || dim.vs % strides[a] != 0) return false;
    const int64_t step = dim.vs / strides[a];
    if (reach[a] + (dim.value_extent() - 1) * step >= shape[a]) {
      // The dimension runs over the end of the axis: split it where the axis ends.
      if (dim.indexed()) return false;
      if (step >= shape[a] || shape[a] % step != 0 || p.offset[a] >= step || reach[a] != p.offset[a])
        return false;
      const int64_t inner = shape[a] / step;
      if (dim.n % inner != 0 || dim.n == inner) return false;
      split_dim(t, d, inner);
      --d;
      continue;
    }
    reach[a] += (dim.value_extent() - 1) * step;
    p.axis.push_back(a);
    p.step.push_back(step);
  }
  return true;
}

void split_dim(Term& t, int64_t d, int64_t inner) {
  const Dim whole = t.dims[d];
  t.dims[d] = {whole.n / inner, whole.ks * inner, whole.vs * inner};
  t.dims.insert(t.dims.begin() + d + 1, {inner, whole.ks, whole.vs});
  for (Tensor* f : {&t.coef, &t.core}) {
    if (!f->defined()) continue;
    *f = varies(*f, d) ? f->unflatten(d, {whole.n / inner, inner}) : f->unsqueeze(d);
  }
}

void squeeze(Term& t) {
  bool any = false;
  for (const Dim& d : t.dims) any = any || (d.n == 1 && !d.indexed());
  if (!any) return;
  c10::SmallVector<Dim, 6> kept;
  Shape drop;
  for (int64_t d = 0; d < t.rank(); ++d) {
    if (t.dims[d].n == 1 && !t.dims[d].indexed()) {
      drop.push_back(d);
    } else {
      kept.push_back(t.dims[d]);
    }
  }
  for (Tensor* f : {&t.coef, &t.core}) {
    if (f->defined()) *f = f->squeeze(drop);
  }
  t.dims = std::move(kept);
}

void fold_coef(Term& t) {
  if (!t.coef.defined()) return;
  if (!t.core.defined()) {
    t.core = std::move(t.coef);
    t.owned = false;
  } else {
    int64_t elements = 1;
    for (int64_t d = 0; d < t.rank(); ++d) elements *= std::max(t.coef.size(d), t.core.size(d));
    ledger().reserve(elements, t.core.element_size());
    t.core = kernels::multiply(t.core, t.coef);
    t.owned = true;
  }
  t.coef = Tensor();
}

void settle(Term& t) {
  if (!t.core.defined()) {
    if (coef_on_seed(t)) fold_coef(t);
    return;
  }
  if (t.coef.defined()) return;
  for (int64_t d = 0; d < t.rank(); ++d) {
    if (t.dims[d].vs == 0 && varies(t.core, d)) return;
  }
  t.coef = std::move(t.core);
  t.core = Tensor();
}

bool coef_on_seed(const Term& t) {
  for (int64_t d = 0; d < t.rank(); ++d) {
    if (t.dims[d].vs == 0 && varies(t.coef, d)) return true;
  }
  return false;
}

namespace {

void scatter_into(const Tensor& out, const Term& t, int64_t k_begin, int64_t numel) {
  c10::SmallVector<kernels::PlacedAxis, 6> axes;
  for (const Dim& d : t.dims) {
    kernels::PlacedAxis x{d.n, (d.k ? 0 : d.ks * numel) + (d.v ? 0 : d.vs), {}};
    if (d.k) x.by[0] = {d.k->index, d.ks * numel};
    if (d.v) x.by[1] = {d.v->index, d.vs};
    axes.push_back(std::move(x));
  }
  kernels::scatter_add(out, axes, (t.k0 - k_begin) * numel + t.v0, t.coef, t.core, t.alpha);
}

Shape strides_in(const Term& t, int64_t numel) {
  Shape strides;
  for (const Dim& d : t.dims) strides.push_back(d.ks * numel + d.vs);
  return strides;
}

}  // namespace

void add_into(const Tensor& out, const Term& t, int64_t k_begin, int64_t numel) {
  if (t.indexed()) return scatter_into(out, t, k_begin, numel);
  kernels::combine(kernels::Into::add, out, sizes_of(t), strides_in(t, numel),
                   (t.k0 - k_begin) * numel + t.v0, t.coef, t.core, t.alpha);
}

void write_into(const Tensor& out, c10::ArrayRef<Term> terms, int64_t k_begin, int64_t numel) {
  c10::SmallVector<kernels::Part, 4> parts;
  for (const Term& t : terms) {
    if (t.indexed()) continue;
    parts.push_back(
        {sizes_of(t), strides_in(t, numel), (t.k0 - k_begin) * numel + t.v0, t.coef, t.core, t.alpha});
  }
  kernels::write_sum(out, parts);
  for (const Term& t : terms) {
    if (t.indexed()) scatter_into(out, t, k_begin, numel);
  }
}

Tensor product(const Term& t) {
  if (t.coef.defined() && t.core.defined()) return kernels::multiply(t.coef, t.core, t.alpha);
  const Tensor& p = t.coef.defined() ? t.coef : t.core;
  return t.alpha == 1.0 ? p : at::mul(p, t.alpha);
}

}  // namespace hesse
