// Scaling touches only coefs.
#include "verbs.h"

#include "kernels/combine.h"
#include "verbs/terms.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace hesse {

namespace {

// c as a factor of the term: one axis per dimension.
Window window(const Term& term, const Placement* p, const Tensor& c) {
  Window w{{}, {}, c.storage_offset()};
  if (!p) {  // flat: c is contiguous and of the value's own shape
    for (const Dim& d : term.dims) {
      w.size.push_back(d.vs == 0 ? 1 : d.n);
      w.stride.push_back(d.vs);
    }
    w.offset += term.v0;
    return w;
  }
  auto stride_of = [&c](int64_t a) { return c.size(a) == 1 ? 0 : c.stride(a); };
  for (int64_t d = 0; d < term.rank(); ++d) {
    const int64_t stride = p->axis[d] < 0 ? 0 : p->step[d] * stride_of(p->axis[d]);
    w.size.push_back(stride == 0 ? 1 : term.dims[d].n);
    w.stride.push_back(stride);
  }
  for (size_t a = 0; a < p->offset.size(); ++a) w.offset += p->offset[a] * stride_of(static_cast<int64_t>(a));
  return w;
}

// c where the values are that an index places: read in the order of the term's own dimensions.
Tensor gathered(const Term& term, Placement& p, Tensor c) {
  for (int64_t d = 0; d < term.rank(); ++d) {
    const Places* places = term.dims[d].v;
    if (!places) continue;
    const int64_t a = p.axis[d];
    if (c.size(a) > 1) c = c.index_select(a, places->index * p.step[d] + p.offset[a]);
    p.step[d] = 1;
    p.offset[a] = 0;
  }
  return c;
}

using Product = Tensor (*)(const Tensor& coef, const Tensor& c);

Tensor multiplied(const Tensor& coef, const Tensor& c) { return kernels::multiply(coef, c); }
Tensor selected(const Tensor& coef, const Tensor& c) {
  return at::where(c.ne(0), at::mul(coef, c), at::zeros({}, c.options()));
}

// The core is zero where the factor that selects is zero for all that the core's element stands for.
void select_core(Term& term, const Tensor& c) {
  Tensor all = c.eq(0);
  for (int64_t d = 0; d < term.rank(); ++d) {
    if (!varies(term.core, d) && varies(all, d)) all = all.all(d, /*keepdim=*/true);
  }
  term.core = term.core.masked_fill(all, 0);
  term.owned = true;
}

Tangent scaled(Tangent t, const Tensor& factor, Product product);

}  // namespace

Tangent scale(Tangent t, const Tensor& c) { return scaled(std::move(t), c, multiplied); }
Tangent select(Tangent t, const Tensor& c) { return scaled(std::move(t), c, selected); }

Tangent scale(Tangent t, double alpha) {
  if (alpha == 0.0) return zero_like(t, t.shape);
  for (Term& term : t.terms) term.alpha *= alpha;
  return t;
}

namespace {

Tangent scaled(Tangent t, const Tensor& factor, Product product) {
  if (factor.is_complex())
    t = cast(std::move(t), at::promote_types(factor.scalar_type(), t.options.dtype().toScalarType()));
  if (t.zero()) return t;
  Tensor c = factor.scalar_type() == t.options.dtype() ? factor : factor.to(t.options.dtype().toScalarType());
  const int64_t lead = static_cast<int64_t>(t.shape.size()) - c.dim();
  const bool flat = lead == 0 && c.sizes() == c10::IntArrayRef(t.shape) && c.is_contiguous();
  if (lead > 0) {
    Shape full(lead, 1);
    full.append(c.sizes().begin(), c.sizes().end());
    c = c.reshape(full);
  }
  // Terms that share a coef go on sharing it: the product is formed once.
  struct Done {
    Tensor before;
    Window window;
    Tensor after;
  };
  c10::SmallVector<Done, 4> done;
  for (Term& term : t.terms) {
    Placement p;
    const bool scattered = std::any_of(term.dims.begin(), term.dims.end(), [](const Dim& d) { return d.v; });
    // Beside another dimension on its axis, an index does not tell where the values are.
    auto alone = [&p](int64_t a) { return std::count(p.axis.begin(), p.axis.end(), a) == 1; };
    if (!flat || scattered) place_or_densify(t, term, p, alone);
    if (coef_on_seed(term)) fold_coef(term);
    const Tensor there = scattered ? gathered(term, p, c) : c;
    const Window w = window(term, flat && !scattered ? nullptr : &p, there);
    const Done* known = nullptr;
    for (const Done& d : done) {
      if (scattered) break;
      const bool same =
          term.coef.defined() ? d.before.defined() && d.before.is_same(term.coef) : !d.before.defined();
      if (same && d.window == w) known = &d;
    }
    if (known && !term.spoiled) {
      term.coef = known->after;
      continue;
    }
    const Tensor view = windowed(there, w);
    if (term.spoiled && product == selected && term.core.defined()) select_core(term, view);
    Tensor after = term.coef.defined() ? product(term.coef, view) : view;
    if (t.terms.size() > 1 && !scattered) done.push_back({term.coef, w, after});
    term.coef = std::move(after);
  }
  return t;
}

}  // namespace

}  // namespace hesse
