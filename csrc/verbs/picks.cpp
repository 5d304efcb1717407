// Elements of an axis picked by an index. What is tied along the axis stays so, placed by the index; the rest
// is a linear map.
#include "verbs.h"

#include "ledger.h"
#include "verbs/terms.h"

#include <ATen/ATen.h>

#include <optional>

namespace hesse {

namespace {

// Two neighbouring dimensions that together count on, as one.
bool join(Term& term, Placement& p, int64_t d) {
  const Dim outer = term.dims[d], inner = term.dims[d + 1];
  if (outer.indexed() || inner.indexed() || outer.ks != inner.n * inner.ks || p.axis[d] != p.axis[d + 1] ||
      p.step[d] != inner.n * p.step[d + 1])
    return false;
  for (Tensor* f : {&term.coef, &term.core}) {
    if (!f->defined()) continue;
    if (varies(*f, d) || varies(*f, d + 1)) {
      Shape size(f->sizes().begin(), f->sizes().end());
      size[d] = outer.n;
      size[d + 1] = inner.n;
      *f = f->expand(size);
    }
    *f = f->flatten(d, d + 1);
  }
  term.dims[d] = {outer.n * inner.n, inner.ks, inner.vs};
  p.step[d] = p.step[d + 1];
  term.dims.erase(term.dims.begin() + d + 1);
  p.axis.erase(p.axis.begin() + d + 1);
  p.step.erase(p.step.begin() + d + 1);
  return true;
}

// The one dimension on the axis, if it is tied.
std::optional<int64_t> tie_along(Term& term, Placement& p, int64_t axis) {
  for (int64_t d = term.rank() - 2; d >= 0; --d) {
    if (p.axis[d] == axis) join(term, p, d);
  }
  std::optional<int64_t> found;
  for (int64_t d = 0; d < term.rank(); ++d) {
    if (p.axis[d] != axis) continue;
    if (found) return std::nullopt;
    found = d;
  }
  return found && term.dims[*found].ks != 0 ? found : std::nullopt;
}

// It runs in order and from end to end.
bool whole(const Term& term, const Placement& p, int64_t d, int64_t axis, int64_t size) {
  return term.dims[d].n == size && p.step[d] == 1 && p.offset[axis] == 0;
}

// Terms with a tie along the axis by `move`, where it can; the others together by `map`.
template <class Move, class Map>
Tangent by_term(Tangent t, int64_t axis, int64_t to_size, Move move, Map map) {
  Tangent rest = zero_like(t, t.shape);
  const int64_t size = t.shape[axis];
  Shape shape = t.shape, to(t.shape.size());
  shape[axis] = to_size;
  for (size_t a = 0; a < to.size(); ++a) to[a] = static_cast<int64_t>(a);
  Tangent out = zero_like(t, shape);
  for (Term& term : t.terms) {
    Placement p;
    place_or_densify(t, term, p, [axis](int64_t a) { return a != axis; });
    const auto d = tie_along(term, p, axis);
    if (!d || !move(term, p, *d, size)) {
      rest.terms.push_back(std::move(term));
      continue;
    }
    p.step[*d] = 1;
    p.offset[axis] = 0;
    move_axes(term, p, to, shape);
    settle(term);
    out.terms.push_back(std::move(term));
  }
  if (!rest.zero()) accumulate(out, map(std::move(rest)));
  return out;
}

}  // namespace

Tangent pick_axis(Tangent t, int64_t axis, const Tensor& index) {
  if (index.numel() == 0) {
    t.shape[axis] = 0;
    return zero_like(t, t.shape);
  }
  auto move = [&](Term& term, Placement& p, int64_t d, int64_t size) {
    if (!whole(term, p, d, axis, size)) return false;
    Dim& dim = term.dims[d];
    dim.n = index.size(0);
    dim.k = dim.k ? hold(term, dim.k->index.index_select(0, index), dim.k->size) : hold(term, index, size);
    if (varies(term.coef, d)) term.coef = term.coef.index_select(d, index);
    if (varies(term.core, d)) {
      ledger().reserve(term.core.numel() / size * dim.n, term.core.element_size());
      term.core = term.core.index_select(d, index);
      term.owned = true;
    }
    return true;
  };
  auto map = [&](Tangent rest) {
    return map_axes(std::move(rest), {axis}, {index.size(0)},
                    [&index](const Tensor& rows, const Tensor&) { return rows.index_select(-1, index); });
  };
  return by_term(std::move(t), axis, index.size(0), move, map);
}

Tangent unpick_axis(Tangent t, int64_t axis, const Tensor& index, int64_t size) {
  auto move = [&](Term& term, Placement& p, int64_t d, int64_t) {
    const int64_t n = term.dims[d].n, step = p.step[d], start = p.offset[axis];
    if (size == 1) {
      p.axis[d] = -1;  // one place: a sum
    } else {
      term.dims[d].v = hold(term, index.slice(0, start, start + (n - 1) * step + 1, step), size);
    }
    return true;
  };
  auto map = [&](Tangent rest) {
    return map_axes(std::move(rest), {axis}, {size}, [&](const Tensor& rows, const Tensor&) {
      return at::zeros({rows.size(0), rows.size(1), size}, rows.options()).index_add(-1, index, rows);
    });
  };
  return by_term(std::move(t), axis, size, move, map);
}

}  // namespace hesse
