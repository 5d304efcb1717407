#include "tangent.h"

#include "kernels/combine.h"
#include "ledger.h"
#include "workspace.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <limits>
#include <optional>

namespace hesse {

namespace {

bool varies(const Tensor& factor, int64_t d) { return factor.defined() && factor.size(d) > 1; }

Shape sizes_of(const Term& t) {
  Shape s;
  for (const Dim& d : t.dims) s.push_back(d.n);
  return s;
}

bool same_placement(const Term& a, const Term& b) {
  return a.k0 == b.k0 && a.v0 == b.v0 && a.dims.size() == b.dims.size() &&
         std::equal(a.dims.begin(), a.dims.end(), b.dims.begin());
}

// a += b for terms of equal placement and core: the coefs add, at the size of the value.
void merge(Term& a, const Term& b) {
  if (!a.coef.defined() && !b.coef.defined()) {
    a.alpha += b.alpha;
    return;
  }
  if (same_factor(a.coef, b.coef)) {
    a.alpha += b.alpha;
    return;
  }
  if (!a.coef.defined()) {
    a.coef = at::add(b.alpha == 1.0 ? b.coef : at::mul(b.coef, b.alpha), a.alpha);
  } else if (!b.coef.defined()) {
    a.coef = at::add(a.alpha == 1.0 ? a.coef : at::mul(a.coef, a.alpha), b.alpha);
  } else {
    a.coef = kernels::blend(a.coef, a.alpha, b.coef, b.alpha);
  }
  a.alpha = 1.0;
}

Term dense_box(const Tensor& rows, c10::IntArrayRef shape, int64_t k0) {
  Term box;
  box.k0 = k0;
  box.dims.push_back({rows.size(0), 1, 0});
  const Shape strides = row_major(shape);
  Shape sizes{rows.size(0)};
  for (size_t a = 0; a < shape.size(); ++a) {
    if (shape[a] == 1) continue;
    box.dims.push_back({shape[a], 0, strides[a]});
    sizes.push_back(shape[a]);
  }
  box.core = rows.reshape(sizes);
  box.owned = true;
  squeeze(box);
  return box;
}

// One dense box when the terms hold more than it would, or are too many to be worth their structure.
void combine(Tangent& t) {
  constexpr size_t many_terms = 24;
  if (t.terms.size() < 2) return;
  int64_t held = 0;
  for (const Term& term : t.terms) held += term.core.defined() ? term.core.numel() : 1;
  const auto [first, last] = seed_range(t);
  const int64_t box = (last - first) * t.numel();
  if (held >= box || (t.terms.size() >= many_terms && 16 * held >= box)) densify(t);
}

}  // namespace

bool same_factor(const Tensor& a, const Tensor& b) {
  if (!a.defined() || !b.defined()) return a.defined() == b.defined();
  if (a.is_same(b)) return true;
  if (a.requires_grad() || b.requires_grad()) return false;
  return a.is_alias_of(b) && a.storage_offset() == b.storage_offset() && a.scalar_type() == b.scalar_type() &&
         a.sizes() == b.sizes() && a.strides() == b.strides();
}

void combine_into(kernels::Into into, const Tensor& out, const Term& t, int64_t k_begin, int64_t numel) {
  Shape strides;
  for (const Dim& d : t.dims) strides.push_back(d.ks * numel + d.vs);
  kernels::combine(into, out, sizes_of(t), strides, (t.k0 - k_begin) * numel + t.v0, t.coef, t.core, t.alpha);
}

void add_into(const Tensor& out, const Term& t, int64_t k_begin, int64_t numel) {
  combine_into(kernels::Into::add, out, t, k_begin, numel);
}

void write_into(const Tensor& out, const Term& t, int64_t k_begin, int64_t numel) {
  combine_into(kernels::Into::write, out, t, k_begin, numel);
}

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

int64_t Tangent::numel() const { return numel_of(shape); }

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
  for (const Dim& d : dims) (d.ks >= 0 ? last : first) += (d.n - 1) * d.ks;
  return {first, last + 1};
}

Tangent zero_like(const Tangent& t, c10::IntArrayRef shape) {
  Tangent z;
  z.K = t.K;
  z.shape = Shape(shape.begin(), shape.end());
  z.options = t.options;
  return z;
}

std::vector<std::pair<int64_t, int64_t>> seed_boxes(c10::IntArrayRef shape, int64_t begin, int64_t end) {
  std::vector<std::pair<int64_t, int64_t>> boxes;
  const Shape strides = row_major(shape);
  while (begin < end) {
    // The widest axis block that starts here and fits.
    int64_t unit = 1, room = 1;
    for (size_t a = 0; a < shape.size(); ++a) {
      if (begin % strides[a] == 0 && strides[a] <= end - begin) {
        unit = strides[a];
        room = shape[a] - (begin / strides[a]) % shape[a];
        break;
      }
    }
    const int64_t count = std::min(room, (end - begin) / unit);
    boxes.emplace_back(begin, begin + count * unit);
    begin += count * unit;
  }
  return boxes;
}

void add_identity(Tangent& t, int64_t k_begin, int64_t k_end, int64_t at) {
  Term term;
  term.k0 = at;
  term.v0 = k_begin;
  int64_t left = k_end - k_begin;
  const Shape strides = row_major(t.shape);
  for (size_t a = 0; a < t.shape.size() && left > 1; ++a) {
    const int64_t n = std::min(t.shape[a], left / strides[a]);
    if (n <= 1) continue;
    term.dims.push_back({n, strides[a], strides[a]});
    left = strides[a];
  }
  t.terms.push_back(std::move(term));
}

Tangent from_value(const Tensor& value) {
  Tangent t;
  t.K = 1;
  t.shape = Shape(value.sizes().begin(), value.sizes().end());
  t.options = value.options();
  if (value.numel() == 0) return t;
  Term term;
  const Shape strides = row_major(value.sizes());
  Shape coef_size, coef_stride;
  bool as_is = true;
  for (int64_t a = 0; a < value.dim(); ++a) {
    if (value.size(a) == 1) {
      as_is = false;
      continue;
    }
    term.dims.push_back({value.size(a), 0, strides[a]});
    const bool broadcast = value.stride(a) == 0;
    as_is = as_is && !broadcast;
    coef_size.push_back(broadcast ? 1 : value.size(a));
    coef_stride.push_back(value.stride(a));
  }
  term.coef = as_is ? value : value.as_strided(coef_size, coef_stride, value.storage_offset());
  t.terms.push_back(std::move(term));
  return t;
}

Tangent from_dense(const Tensor& rows, int64_t K, int64_t k0) {
  Tangent t;
  t.K = K;
  t.shape = Shape(rows.sizes().begin() + 1, rows.sizes().end());
  t.options = rows.options();
  if (rows.numel() > 0) t.terms.push_back(dense_box(rows, t.shape, k0));
  return t;
}

Tensor product(const Term& t) {
  if (t.coef.defined() && t.core.defined()) return kernels::multiply(t.coef, t.core, t.alpha);
  const Tensor& p = t.coef.defined() ? t.coef : t.core;
  return t.alpha == 1.0 ? p : at::mul(p, t.alpha);
}

std::pair<int64_t, int64_t> seed_range(const Tangent& t) {
  if (t.zero()) return {0, 0};
  int64_t first = std::numeric_limits<int64_t>::max(), last = 0;
  for (const Term& term : t.terms) {
    const auto [a, b] = term.seed_range();
    first = std::min(first, a);
    last = std::max(last, b);
  }
  return {first, last};
}

namespace {

// The core's axes, of full size and in this order, are those of a contiguous tensor.
bool contiguous_in(const Tensor& core, const Term& term, c10::ArrayRef<int64_t> order) {
  int64_t expected = 1;
  for (size_t i = order.size(); i-- > 0;) {
    const int64_t d = order[i];
    if (core.size(d) != term.dims[d].n || core.stride(d) != expected) return false;
    expected *= core.size(d);
  }
  return true;
}

// The term's dimensions by the strides with which they move through rows [k_begin, k_end) of T, if it fills
// these exactly; none if not.
std::optional<Shape> row_order(const Tangent& t, const Term& term, int64_t k_begin, int64_t k_end) {
  const int64_t numel = t.numel();
  if (term.k0 != k_begin || term.v0 != 0 || term.coverage() != (k_end - k_begin) * numel) return std::nullopt;
  Shape order(term.dims.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int64_t>(i);
  auto stride = [&](int64_t d) { return term.dims[d].ks * numel + term.dims[d].vs; };
  std::sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return stride(a) > stride(b); });
  int64_t expected = 1;
  for (size_t i = order.size(); i-- > 0; expected *= term.dims[order[i]].n) {
    if (stride(order[i]) != expected) return std::nullopt;
  }
  return order;
}

}  // namespace

Tensor dense(const Tangent& t, int64_t k_begin, int64_t k_end) {
  const auto [first, last] = seed_range(t);
  TORCH_INTERNAL_ASSERT(t.zero() || (first >= k_begin && last <= k_end),
                        "hesse: seeds outside of the range read");
  Shape size{k_end - k_begin};
  size.append(t.shape.begin(), t.shape.end());
  auto reserve = [&] {
    if (t.K > 1) ledger().reserve(numel_of(size), t.options.dtype().itemsize());
  };
  const bool recorded = c10::GradMode::is_enabled();
  // A term that fills the rows is read where it lies, or at least written and not added to zeros.
  const Term* whole = nullptr;
  for (const Term& term : t.terms) {
    if (recorded && t.terms.size() > 1) break;
    const auto order = row_order(t, term, k_begin, k_end);
    if (!order || (!term.coef.defined() && !term.core.defined())) continue;
    if (t.terms.size() == 1) {
      const bool as_it_lies =
          !term.coef.defined() && term.alpha == 1.0 && contiguous_in(term.core, term, *order);
      if (as_it_lies || recorded) {
        if (!as_it_lies) reserve();
        return product(term).expand(sizes_of(term)).permute(*order).reshape(size);
      }
    }
    whole = &term;
    break;
  }
  reserve();
  const Tensor out = fresh(size, t.options);
  if (whole) {
    write_into(out, *whole, k_begin, t.numel());
  } else {
    out.zero_();
  }
  for (const Term& term : t.terms) {
    if (&term != whole) add_into(out, term, k_begin, t.numel());
  }
  return out;
}

Tensor value(const Tangent& t) {
  if (t.terms.size() == 1 && t.terms[0].v0 == 0 && t.terms[0].coverage() == t.numel()) {
    const Term& term = t.terms[0];
    const Shape strides = row_major(t.shape);
    bool aligned = true;
    size_t d = 0;
    Shape size;
    for (size_t a = 0; a < t.shape.size(); ++a) {
      if (t.shape[a] == 1) {
        size.push_back(1);
        continue;
      }
      if (d >= term.dims.size() || term.dims[d].vs != strides[a] || term.dims[d].n != t.shape[a]) {
        aligned = false;
        break;
      }
      size.push_back(d);  // the coef axis, resolved below
      ++d;
    }
    if (aligned && d == term.dims.size()) {
      Tensor p = term.coef.defined() || term.core.defined()
                     ? product(term)
                     : at::full({}, term.alpha, t.options).expand(sizes_of(term));
      d = 0;
      for (size_t a = 0; a < t.shape.size(); ++a)
        size[a] = t.shape[a] == 1 ? 1 : p.size(static_cast<int64_t>(d++));
      return (p.sizes() == c10::IntArrayRef(size) ? p : p.reshape(size)).expand(t.shape);
    }
  }
  return dense(t, 0, 1).squeeze(0);
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
  for (const Dim& d : t.dims) any = any || d.n == 1;
  if (!any) return;
  c10::SmallVector<Dim, 6> kept;
  Shape drop;
  for (int64_t d = 0; d < t.rank(); ++d) {
    if (t.dims[d].n == 1) {
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
    if (reach[a] + (dim.n - 1) * step >= shape[a]) {
      // The dimension runs over the end of the axis: split it where the axis ends.
      if (step >= shape[a] || shape[a] % step != 0 || p.offset[a] >= step || reach[a] != p.offset[a])
        return false;
      const int64_t inner = shape[a] / step;
      if (dim.n % inner != 0 || dim.n == inner) return false;
      split_dim(t, d, inner);
      --d;
      continue;
    }
    reach[a] += (dim.n - 1) * step;
    p.axis.push_back(a);
    p.step.push_back(step);
  }
  return true;
}

namespace {

// The term is the whole box already, in memory that nobody else reads.
bool owned_rows(const Tangent& t, const Term& term, int64_t first, int64_t last) {
  const int64_t numel = t.numel();
  if (term.coef.defined() || !term.core.defined() || term.alpha != 1.0 || term.k0 != first || term.v0 != 0)
    return false;
  if (term.core.numel() != (last - first) * numel || term.core.use_count() > 1 ||
      term.core.storage().use_count() > 1) {
    return false;
  }
  for (int64_t d = 0; d < term.rank(); ++d) {
    if (term.core.stride(d) != term.dims[d].ks * numel + term.dims[d].vs) return false;
  }
  return true;
}

}  // namespace

Term densify(const Tangent& t, const Term& term) {
  Tangent one = zero_like(t, t.shape);
  one.terms.push_back(term);
  const auto [first, last] = term.seed_range();
  return dense_box(dense(one, first, last), t.shape, first);
}

void densify(Tangent& t) {
  const auto [first, last] = seed_range(t);
  if (!c10::GradMode::is_enabled()) {
    for (size_t i = 0; i < t.terms.size(); ++i) {
      if (!owned_rows(t, t.terms[i], first, last)) continue;
      Term box = std::move(t.terms[i]);
      const Tensor rows = box.core.as_strided({last - first, t.numel()}, {t.numel(), 1});
      for (size_t j = 0; j < t.terms.size(); ++j) {
        if (j != i) add_into(rows, t.terms[j], first, t.numel());
      }
      t.terms.clear();
      t.terms.push_back(std::move(box));
      return;
    }
  }
  Term box = dense_box(dense(t, first, last), t.shape, first);
  t.terms.clear();
  t.terms.push_back(std::move(box));
}

void restrict_seeds(Tangent& t, int64_t k_end) {
  c10::SmallVector<Term, 2> kept;
  for (Term& term : t.terms) {
    const auto [first, last] = term.seed_range();
    if (first >= k_end) continue;
    if (last > k_end) {
      // A leading dimension that alone spans the seeds beyond k_end is narrowed; anything else is kept whole,
      // which is correct and only more work.
      for (int64_t d = 0; d < term.rank(); ++d) {
        const int64_t rest = last - 1 - (term.dims[d].n - 1) * term.dims[d].ks;
        if (term.dims[d].ks <= 0 || rest >= k_end) continue;
        const int64_t n = (k_end - 1 - first) / term.dims[d].ks + 1;
        if (n >= term.dims[d].n) continue;
        term.dims[d].n = n;
        if (varies(term.coef, d)) term.coef = term.coef.narrow(d, 0, n);
        if (varies(term.core, d)) term.core = term.core.narrow(d, 0, n);
        break;
      }
      squeeze(term);
    }
    kept.push_back(std::move(term));
  }
  t.terms = std::move(kept);
}

bool same(const Tangent& a, const Tangent& b) {
  return a.terms.size() == b.terms.size() && a.shape == b.shape && a.options.dtype() == b.options.dtype() &&
         std::equal(a.terms.begin(), a.terms.end(), b.terms.begin(), [](const Term& x, const Term& y) {
           return x.alpha == y.alpha && same_placement(x, y) && same_factor(x.coef, y.coef) &&
                  same_factor(x.core, y.core);
         });
}

namespace {

// The term is all of its core, dense in memory that nobody else reads.
bool own_and_full(const Term& t) {
  return t.owned && t.core.defined() && !t.coef.defined() && t.core.numel() == t.coverage() &&
         t.core.use_count() == 1 && t.core.storage().use_count() == 1;
}

// a += b in a's own memory, however it is laid out, where b has the same dimensions in any order.
bool absorb(Term& a, const Term& b) {
  if (c10::GradMode::is_enabled() || !own_and_full(a) || a.k0 != b.k0 || a.v0 != b.v0 || a.rank() != b.rank())
    return false;
  Shape order;
  for (const Dim& d : a.dims) {
    const auto at = std::find(b.dims.begin(), b.dims.end(), d);
    if (at == b.dims.end()) return false;
    order.push_back(at - b.dims.begin());
  }
  auto permuted = [&order](const Tensor& f) { return f.defined() ? f.permute(order) : f; };
  const Tensor coef = permuted(b.coef), core = permuted(b.core);
  if (!kernels::has_loops(a.core, coef) || !kernels::has_loops(a.core, core)) return false;
  kernels::combine(kernels::Into::add, a.core, a.core.sizes(), a.core.strides(), 0, coef, core,
                   b.alpha / a.alpha);
  return true;
}

}  // namespace

void accumulate(Tangent& t, Tangent other, bool combining) {
  t.upper = t.upper || other.upper;
  if (t.zero()) {
    t.terms = std::move(other.terms);
    return;
  }
  for (Term& b : other.terms) {
    bool merged = false;
    for (Term& a : t.terms) {
      if (same_placement(a, b) && same_factor(a.core, b.core)) {
        merge(a, b);
        merged = true;
        break;
      }
    }
    for (size_t i = 0; combining && !merged && i < t.terms.size(); ++i) merged = absorb(t.terms[i], b);
    if (!merged) t.terms.push_back(std::move(b));
  }
  if (combining) combine(t);
}

Tangent cast(Tangent t, at::ScalarType dtype) {
  if (t.options.dtype() == dtype) return t;
  t.options = t.options.dtype(dtype);
  for (Term& term : t.terms) {
    if (term.coef.defined()) term.coef = term.coef.to(dtype);
    if (term.core.defined()) term.core = term.core.to(dtype);
  }
  return t;
}

}  // namespace hesse
