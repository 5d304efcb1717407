// Products of a tangent with one known tensor.
#include "verbs.h"

#include "contract.h"
#include "verbs/terms.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>

namespace hesse {

namespace {

thread_local const Demand* demand = nullptr;

// The landing of a term whose dimensions (summed ones aside) are final.
std::optional<Landing> landing_of(const Term& term, const std::vector<bool>& reduce, c10::IntArrayRef shape) {
  if (!demand || term.indexed() || c10::IntArrayRef(demand->shape) != shape) return std::nullopt;
  Term bare;
  bare.k0 = term.k0;
  bare.v0 = term.v0;
  for (int64_t d = 0; d < term.rank(); ++d) bare.dims.push_back(reduce[d] ? Dim{1, 0, 0} : term.dims[d]);
  if (!demand->to_input(bare)) return std::nullopt;
  return Landing{bare.dims, bare.k0, bare.v0, demand->v_shift, true};
}

// The three factors of a product term and which of their axes are summed; picks the order of products that
// materialises least.
// Of a `single` seed the coef is all there is, and accounted for. Returns whether only the upper triangle was
// computed.
bool multiply(Term& term, const Tensor& w, const std::vector<bool>& reduce, c10::IntArrayRef shape,
              bool single) {
  const Shape sizes = sizes_of(term);
  const Tensor before = term.core;
  bool any = false, coef_summed = false, core_summed = false, coef_on_value = true, w_on_value = true;
  bool core_seeded = false;
  for (int64_t d = 0; d < term.rank(); ++d) {
    any = any || reduce[d];
    coef_summed = coef_summed || (reduce[d] && varies(term.coef, d));
    core_summed = core_summed || (reduce[d] && varies(term.core, d));
    core_seeded = core_seeded || (term.dims[d].ks != 0 && varies(term.core, d));
    if (!reduce[d] && term.dims[d].vs == 0) {
      coef_on_value = coef_on_value && !varies(term.coef, d);
      w_on_value = w_on_value && !varies(w, d);
    }
  }
  const std::vector<bool> none(reduce.size(), false);
  std::optional<Landing> landing = any ? landing_of(term, reduce, shape) : std::nullopt;
  Landing* at = landing ? &*landing : nullptr;
  auto with_seeds = [&](const Tensor& a, const Tensor& b) {
    return contract(a, b, sizes, reduce, true, term.alpha, at);
  };
  if (!any && coef_on_value) {
    // A tied axis meets W: a broadcast product, nothing to sum.
    if (term.core.defined()) {
      if (w_on_value) {
        term.coef = contract(term.coef, w, sizes, none, false, term.alpha);
      } else {
        term.core = contract(term.core, w, sizes, none, true, term.alpha);
      }
    } else {
      term.core = w;
    }
  } else if (!core_summed && coef_on_value && w_on_value) {
    // Only value-sized factors meet: the core stays as it is.
    term.coef = contract(term.coef, w, sizes, reduce, single, term.alpha);
    at = nullptr;
  } else if (!coef_summed && coef_on_value) {
    term.core = with_seeds(term.core, w);
  } else if (!term.core.defined()) {
    term.core = with_seeds(term.coef, w);
    term.coef = Tensor();
  } else {
    // coef folds into the core or into W, whichever product is smaller.
    int64_t into_core = 1, into_w = 1;
    for (int64_t d = 0; d < term.rank(); ++d) {
      into_core *= varies(term.coef, d) || varies(term.core, d) ? sizes[d] : 1;
      into_w *= varies(term.coef, d) || varies(w, d) ? sizes[d] : 1;
    }
    if (into_w < into_core) {
      const Tensor folded = contract(term.coef, w, sizes, none, false, term.alpha);
      term.core = with_seeds(term.core, folded);
    } else {
      const Tensor folded = contract(term.coef, term.core, sizes, none, true, term.alpha);
      term.core = with_seeds(folded, w);
    }
    term.coef = Tensor();
  }
  claim(term, before, w);
  for (int64_t d = 0; d < term.rank(); ++d) {
    if (reduce[d]) term.dims[d] = {1, 0, 0};
  }
  squeeze(term);
  settle(term);
  return at && at->upper;
}

}  // namespace

DemandScope::DemandScope(const Demand* d) : previous_(demand) { demand = d; }
DemandScope::~DemandScope() { demand = previous_; }

Tangent einsum(Tangent t, const std::string& t_axes, const Tensor& weight, const std::string& w_axes,
               const std::string& out_axes) {
  constexpr auto npos = std::string::npos;
  if (weight.is_complex())
    t = cast(std::move(t), at::promote_types(weight.scalar_type(), t.options.dtype().toScalarType()));
  Tensor w = weight.scalar_type() == t.options.dtype() ? weight : weight.to(t.options.dtype().toScalarType());
  Shape shape;
  for (char c : out_axes) {
    const size_t in_t = t_axes.find(c), in_w = w_axes.find(c);
    shape.push_back(in_t != npos ? t.shape[in_t] : w.size(static_cast<int64_t>(in_w)));
  }
  if (w.numel() == 0) return zero_like(t, shape);
  const Shape strides = row_major(shape);
  Shape to;
  for (char c : t_axes) {
    const size_t at = out_axes.find(c);
    to.push_back(at == npos ? -1 : static_cast<int64_t>(at));
  }
  const bool ends_here = demand && c10::IntArrayRef(demand->shape) == c10::IntArrayRef(shape);
  Tangent out = zero_like(t, shape);
  for (Term& term : t.terms) {
    Placement p;
    place_or_densify(t, term, p, [&](int64_t a) { return w_axes.find(t_axes[a]) == npos; });
    // W on the term's dimensions, then on the axes that only W has.
    Shape size(term.rank(), 1), stride(term.rank(), 0);
    int64_t offset = w.storage_offset();
    std::vector<bool> reduce(term.rank(), false);
    for (int64_t d = 0; d < term.rank(); ++d) {
      if (p.axis[d] < 0) continue;
      const char c = t_axes[p.axis[d]];
      const size_t in_w = w_axes.find(c);
      if (in_w != npos && w.size(static_cast<int64_t>(in_w)) > 1) {
        size[d] = term.dims[d].n;
        stride[d] = p.step[d] * w.stride(static_cast<int64_t>(in_w));
      }
      reduce[d] = to[p.axis[d]] < 0 && term.dims[d].ks == 0;
    }
    for (size_t a = 0; a < p.offset.size(); ++a) {
      const size_t in_w = w_axes.find(t_axes[a]);
      if (in_w != npos && w.size(static_cast<int64_t>(in_w)) > 1)
        offset += p.offset[a] * w.stride(static_cast<int64_t>(in_w));
    }
    move_axes(term, p, to, shape);
    for (size_t i = 0; i < w_axes.size(); ++i) {
      if (t_axes.find(w_axes[i]) != npos) continue;
      const size_t at = out_axes.find(w_axes[i]);
      const int64_t n = w.size(static_cast<int64_t>(i));
      TORCH_INTERNAL_ASSERT(at != npos, "hesse: an axis of W is summed alone");
      if (n == 1) continue;
      append_dim(term, {n, 0, strides[at]});
      size.push_back(n);
      stride.push_back(w.stride(static_cast<int64_t>(i)));
      reduce.push_back(false);
    }
    Tangent one = zero_like(t, shape);
    one.upper = multiply(term, windowed(w, {size, stride, offset}), reduce, shape, t.K == 1);
    one.terms.push_back(std::move(term));
    accumulate(out, std::move(one), /*combining=*/!ends_here);
  }
  return out;
}

}  // namespace hesse
