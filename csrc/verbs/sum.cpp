// Reshapes keep flat indices; a broadcast and a sum are transposes of each other.
#include "verbs.h"

#include "contract.h"
#include "verbs/terms.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace hesse {

namespace {

// Sums out the dimensions marked in `reduce` (value-only ones) and drops them.
void reduce_dims(Term& term, const std::vector<bool>& reduce) {
  if (std::find(reduce.begin(), reduce.end(), true) == reduce.end()) {
    settle(term);
    return;
  }
  bool coef_reduced = false, core_reduced = false, coef_on_value = true;
  for (int64_t d = 0; d < term.rank(); ++d) {
    coef_reduced = coef_reduced || (reduce[d] && varies(term.coef, d));
    core_reduced = core_reduced || (reduce[d] && varies(term.core, d));
    if (!reduce[d] && term.dims[d].vs == 0) coef_on_value = coef_on_value && !varies(term.coef, d);
  }
  const Shape sizes = sizes_of(term);
  const Tensor before = term.core;
  if (!core_reduced && coef_on_value) {
    term.coef = contract(term.coef, Tensor(), sizes, reduce, false, term.alpha);
  } else if (!coef_reduced && coef_on_value) {
    term.core = contract(term.core, Tensor(), sizes, reduce, true, term.alpha);
  } else {
    term.core = contract(term.coef, term.core, sizes, reduce, true, term.alpha);
    term.coef = Tensor();
  }
  claim(term, before);
  for (int64_t d = 0; d < term.rank(); ++d) {
    if (reduce[d]) term.dims[d] = {1, 0, 0};
  }
  squeeze(term);
  settle(term);
}

}  // namespace

Tangent view(Tangent t, c10::IntArrayRef shape) {
  t.shape = Shape(shape.begin(), shape.end());
  return t;
}

Tangent expand(Tangent t, c10::IntArrayRef shape) {
  if (c10::IntArrayRef(t.shape) == shape) return t;
  Geometry g;
  g.size = Shape(shape.begin(), shape.end());
  g.stride.assign(shape.size(), 0);
  const Shape strides = row_major(t.shape);
  const size_t lead = shape.size() - t.shape.size();
  for (size_t a = 0; a < t.shape.size(); ++a) {
    if (t.shape[a] == shape[lead + a] && t.shape[a] != 1) g.stride[lead + a] = strides[a];
  }
  return take(std::move(t), g);
}

Tangent sum_to(Tangent t, c10::IntArrayRef shape) {
  if (c10::IntArrayRef(t.shape) == shape) return t;
  Shape axes;
  const size_t lead = t.shape.size() - shape.size();
  for (size_t a = 0; a < t.shape.size(); ++a) {
    if (a < lead || (shape[a - lead] == 1 && t.shape[a] != 1)) axes.push_back(static_cast<int64_t>(a));
  }
  return view(sum(std::move(t), axes, false), shape);
}

Tangent sum(Tangent t, c10::IntArrayRef axes, bool keepdim) {
  const int64_t rank = static_cast<int64_t>(t.shape.size());
  std::vector<bool> gone(rank, false);
  for (int64_t a : axes) gone[a] = true;
  // Neighbouring axes with the same fate are one: fewer dimensions have to be split.
  Shape groups, gone_groups;
  for (int64_t a = 0; a < rank; ++a) {
    if (a > 0 && gone[a] == gone[a - 1]) {
      groups.back() *= t.shape[a];
      continue;
    }
    if (gone[a]) gone_groups.push_back(static_cast<int64_t>(groups.size()));
    groups.push_back(t.shape[a]);
  }
  if (static_cast<int64_t>(groups.size()) < rank) {
    Shape result;
    for (int64_t a = 0; a < rank; ++a) {
      if (!gone[a] || keepdim) result.push_back(gone[a] ? 1 : t.shape[a]);
    }
    return view(sum(view(std::move(t), groups), gone_groups, false), result);
  }
  Shape shape, kept, to(rank, -1);
  for (int64_t a = 0; a < rank; ++a) {
    if (!gone[a]) {
      to[a] = static_cast<int64_t>(shape.size());
      shape.push_back(t.shape[a]);
    }
    kept.push_back(gone[a] ? 1 : t.shape[a]);
  }
  for (Term& term : t.terms) {
    Placement p;
    place_or_densify(t, term, p, anywhere);
    std::vector<bool> reduce(term.rank());
    for (int64_t d = 0; d < term.rank(); ++d)
      reduce[d] = p.axis[d] >= 0 && gone[p.axis[d]] && term.dims[d].ks == 0;
    move_axes(term, p, to, shape);
    reduce_dims(term, reduce);
  }
  t.shape = keepdim ? kept : shape;
  Tangent out = zero_like(t, t.shape);
  accumulate(out, std::move(t));
  return out;
}

}  // namespace hesse
