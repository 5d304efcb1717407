#include "tangent.h"

#include "combine.h"
#include "kernels/combine.h"
#include "kernels/workspace.h"
#include "ledger.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>
#include <limits>
#include <optional>

namespace hesse {

namespace {

// a += b for terms of equal placement and core: the coefs add, at the size of the value.
void merge(Term& a, const Term& b) {
  a.spoiled = a.spoiled || b.spoiled;
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

}  // namespace

int64_t Tangent::numel() const { return numel_of(shape); }

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

Tangent from_value(const Tensor& given) {
  const Tensor value = given.resolve_conj();
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

Tangent from_dense(const Tensor& given, int64_t K, int64_t k0) {
  const Tensor rows = given.resolve_conj();
  Tangent t;
  t.K = K;
  t.shape = Shape(rows.sizes().begin() + 1, rows.sizes().end());
  t.options = rows.options();
  if (rows.numel() > 0) t.terms.push_back(dense_box(rows, t.shape, k0));
  return t;
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
  if (term.indexed() || term.k0 != k_begin || term.v0 != 0 || term.coverage() != (k_end - k_begin) * numel)
    return std::nullopt;
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
  // A lone term that fills the rows is read where it lies.
  const auto order = t.terms.size() == 1 ? row_order(t, t.terms[0], k_begin, k_end) : std::nullopt;
  if (order && (t.terms[0].coef.defined() || t.terms[0].core.defined())) {
    const Term& term = t.terms[0];
    const bool as_it_lies =
        !term.coef.defined() && term.alpha == 1.0 && contiguous_in(term.core, term, *order);
    if (as_it_lies || recorded) {
      if (!as_it_lies) reserve();
      return product(term).expand(sizes_of(term)).permute(*order).reshape(size);
    }
  }
  reserve();
  const Tensor out = kernels::fresh(size, t.options);
  write_into(out, t.terms, k_begin, t.numel());
  return out;
}

Tensor value(const Tangent& t) {
  if (t.terms.size() == 1 && t.terms[0].v0 == 0 && t.terms[0].coverage() == t.numel() &&
      !t.terms[0].indexed()) {
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

namespace {

// The term is the whole box already, in memory that nobody else reads.
bool owned_rows(const Tangent& t, const Term& term, int64_t first, int64_t last) {
  const int64_t numel = t.numel();
  if (term.coef.defined() || !term.core.defined() || term.alpha != 1.0 || term.k0 != first || term.v0 != 0 ||
      term.indexed())
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
  Term box = dense_box(dense(one, first, last), t.shape, first);
  box.spoiled = term.spoiled;
  return box;
}

void densify(Tangent& t) {
  const auto [first, last] = seed_range(t);
  const bool spoiled =
      std::any_of(t.terms.begin(), t.terms.end(), [](const Term& term) { return term.spoiled; });
  if (!c10::GradMode::is_enabled()) {
    for (size_t i = 0; i < t.terms.size(); ++i) {
      if (!owned_rows(t, t.terms[i], first, last)) continue;
      Term box = std::move(t.terms[i]);
      const Tensor rows = box.core.as_strided({last - first, t.numel()}, {t.numel(), 1});
      for (size_t j = 0; j < t.terms.size(); ++j) {
        if (j != i) add_into(rows, t.terms[j], first, t.numel());
      }
      box.spoiled = spoiled;
      t.terms.clear();
      t.terms.push_back(std::move(box));
      return;
    }
  }
  Term box = dense_box(dense(t, first, last), t.shape, first);
  box.spoiled = spoiled;
  t.terms.clear();
  t.terms.push_back(std::move(box));
}

void restrict_seeds(Tangent& t, int64_t k_end) {
  c10::SmallVector<Term, 2> kept;
  for (Term& term : t.terms) {
    const auto [first, last] = term.seed_range();
    if (first >= k_end) continue;
    if (last > k_end && !term.indexed()) {
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

namespace {

// Terms without cores that differ in the order of their dimensions alone: b in that of a.
void reorder_like(Term& b, const Term& a) {
  if (a.core.defined() || b.core.defined() || a.rank() != b.rank() || a.k0 != b.k0 || a.v0 != b.v0 ||
      a.dims == b.dims)
    return;
  Shape order;
  for (const Dim& d : a.dims) {
    const auto at = std::find(b.dims.begin(), b.dims.end(), d) - b.dims.begin();
    if (at == b.rank() || std::find(order.begin(), order.end(), at) != order.end()) return;
    order.push_back(at);
  }
  b.dims = a.dims;
  if (b.coef.defined()) b.coef = b.coef.permute(order);
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
    for (auto a = t.terms.begin(); a != t.terms.end() && !merged; ++a) {
      reorder_like(b, *a);
      if (!same_placement(*a, b) || !same_factor(a->core, b.core)) continue;
      merge(*a, b);
      merged = true;
      if (a->alpha == 0.0) {  // x - x
        t.terms.erase(a);
        break;
      }
    }
    for (size_t i = 0; combining && !merged && i < t.terms.size(); ++i) {
      merged = absorb(t.terms[i], b);
      if (merged) t.terms[i].spoiled = t.terms[i].spoiled || b.spoiled;
    }
    if (!merged) t.terms.push_back(std::move(b));
  }
  if (combining) combine(t);
}

Tangent real(Tangent t) {
  const at::ScalarType dtype = t.options.dtype().toScalarType();
  if (!c10::isComplexType(dtype)) return t;
  t.options = t.options.dtype(c10::toRealValueType(dtype));
  for (Term& term : t.terms) {
    if (term.coef.defined() && term.core.defined()) fold_coef(term);
    Tensor& factor = term.core.defined() ? term.core : term.coef;
    if (factor.defined()) factor = at::real(factor).contiguous();
  }
  return t;
}

Tangent conj(Tangent t) {
  if (!c10::isComplexType(t.options.dtype().toScalarType())) return t;
  for (Term& term : t.terms) {
    if (term.coef.defined()) term.coef = at::conj_physical(term.coef);
    if (term.core.defined()) term.core = at::conj_physical(term.core);
  }
  return t;
}

Tangent cast(Tangent t, at::ScalarType dtype) {
  if (t.options.dtype() == dtype) return t;
  if (c10::isComplexType(t.options.dtype().toScalarType()) && !c10::isComplexType(dtype))
    t = real(std::move(t));
  t.options = t.options.dtype(dtype);
  for (Term& term : t.terms) {
    if (term.coef.defined()) term.coef = term.coef.to(dtype);
    if (term.core.defined()) term.core = term.core.to(dtype);
  }
  return t;
}

namespace {

// Only a copy to the host has to be waited for.
Tensor moved(const Tensor& t, c10::Device device) {
  return t.device() == device ? t : t.to(device, /*non_blocking=*/!device.is_cpu());
}

}  // namespace

Tangent moved(Tangent t, c10::Device device) {
  if (t.options.device() == device) return t;
  t.options = t.options.device(device);
  for (Term& term : t.terms) {
    if (term.coef.defined()) term.coef = moved(term.coef, device);
    if (term.core.defined()) {
      const Tensor core = moved(term.core, device);
      term.owned = term.owned || !core.is_same(term.core);
      term.core = core;
    }
    for (Dim& d : term.dims) {
      if (d.k) d.k = hold(term, moved(d.k->index, device), d.k->size);
      if (d.v) d.v = hold(term, moved(d.v->index, device), d.v->size);
    }
  }
  return t;
}

}  // namespace hesse
