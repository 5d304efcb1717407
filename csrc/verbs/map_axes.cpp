// Linear maps along some axes, for what no strides express; the other axes keep their ties.
#include "verbs.h"

#include "kernels/combine.h"
#include "ledger.h"
#include "verbs/terms.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace hesse {

namespace {

// What a map of axes does to a value's shape.
struct AxesOfMap {
  std::vector<bool> mapped;  // per axis of the value
  Shape in, out;             // sizes of the mapped axes
  Shape out_shape;           // of the result
  Shape to;                  // per axis: where it goes, -1 for a mapped one
  Shape in_stride;           // per axis: stride within a row, 0 for a carried one
  Shape known_stride;        // per axis: stride of the known tensor, 0 where that does not vary

  AxesOfMap(const Shape& shape, c10::IntArrayRef axes, c10::IntArrayRef sizes, const Tensor& known)
      : mapped(shape.size(), false), out(sizes.begin(), sizes.end()), out_shape(shape), to(shape.size(), -1) {
    in_stride.assign(shape.size(), 0);
    known_stride.assign(shape.size(), 0);
    for (int64_t a : axes) {
      mapped[a] = true;
      in.push_back(shape[a]);
    }
    const Shape strides = row_major(in);
    for (size_t i = 0; i < axes.size(); ++i) {
      in_stride[axes[i]] = strides[i];
      out_shape[axes[i]] = sizes[i];
    }
    int64_t carried = 0;
    for (size_t a = 0; a < shape.size(); ++a) {
      if (mapped[a]) continue;
      to[a] = static_cast<int64_t>(a);
      if (known.defined() && known.size(carried) > 1) known_stride[a] = known.stride(carried);
      ++carried;
    }
  }
  int64_t carried() const { return static_cast<int64_t>(mapped.size() - in.size()); }
};

// A term's dimensions by what becomes of them.
struct Parts {
  Shape rows;   // seeds, ties, and carried values along which a factor varies
  Shape known;  // carried, and the map differs along them
  Shape value;  // mapped, no seed: what the map acts on
  Shape lazy;   // carried, nothing varies
  int64_t row_count = 1, known_count = 1;
  bool tied = false;  // along a mapped axis

  Parts(const Term& term, const Placement& p, const AxesOfMap& map) {
    for (int64_t d = 0; d < term.rank(); ++d) {
      const int64_t a = p.axis[d];
      const bool on_mapped = a >= 0 && map.mapped[a];
      if (on_mapped && term.dims[d].ks == 0) {
        value.push_back(d);
      } else if (a >= 0 && map.known_stride[a] != 0) {
        known.push_back(d);
        known_count *= term.dims[d].n;
      } else if (on_mapped || varies(term.coef, d) || varies(term.core, d)) {
        rows.push_back(d);
        row_count *= term.dims[d].n;
        tied = tied || on_mapped;
      } else {
        lazy.push_back(d);
      }
    }
  }
  int64_t count() const { return row_count * known_count; }
};

// coef * core as [R, D, *in], the dimensions of `rows` and `known` flattened.
Tensor rows_of(const Term& term, const Placement& p, const Parts& parts, const AxesOfMap& map, bool seeded,
               const at::TensorOptions& options) {
  const int64_t row = numel_of(map.in);
  Shape size(term.rank(), 1), stride(term.rank(), 0);
  int64_t covered = 1, step = row;
  for (const Shape* dims : {&parts.known, &parts.rows}) {
    for (size_t i = dims->size(); i-- > 0;) {
      const int64_t d = (*dims)[i], a = p.axis[d];
      size[d] = term.dims[d].n;
      stride[d] = step + (a >= 0 ? p.step[d] * map.in_stride[a] : 0);
      step *= size[d];
    }
  }
  for (int64_t d : parts.value) {
    size[d] = term.dims[d].n;
    stride[d] = p.step[d] * map.in_stride[p.axis[d]];
    covered *= size[d];
  }
  int64_t offset = 0;
  for (size_t a = 0; a < p.offset.size(); ++a) offset += p.offset[a] * map.in_stride[a];
  Shape shape{parts.row_count, parts.known_count};
  shape.append(map.in.begin(), map.in.end());
  // Where one factor is all there is and lies as the rows do, it is them.
  const bool fills = !parts.tied && covered == row;
  if (fills && term.coef.defined() != term.core.defined()) {
    Shape order(term.rank());
    for (int64_t d = 0; d < term.rank(); ++d) order[d] = d;
    std::stable_sort(order.begin(), order.end(), [&](int64_t x, int64_t y) { return stride[x] > stride[y]; });
    const Tensor lone = (term.coef.defined() ? term.coef : term.core).expand(size).permute(order);
    if (lone.is_contiguous()) return lone.view(shape);
  }
  if (seeded) ledger().reserve(step, options.dtype().itemsize());
  const Tensor rows = at::empty(shape, options);
  kernels::write_sum(rows, kernels::Part{size, stride, offset, term.coef, term.core, 1.0});
  return rows;
}

// The known tensors of a term: [D, ...].
Tensor known_of(const Tensor& known, const Term& term, const Placement& p, const Parts& parts,
                const AxesOfMap& map) {
  if (!known.defined()) return known;
  Shape size, stride, flat{parts.known_count};
  int64_t offset = known.storage_offset();
  for (int64_t d : parts.known) {
    size.push_back(term.dims[d].n);
    stride.push_back(p.step[d] * map.known_stride[p.axis[d]]);
  }
  for (size_t a = 0; a < p.offset.size(); ++a) offset += p.offset[a] * map.known_stride[a];
  for (int64_t i = map.carried(); i < known.dim(); ++i) {
    size.push_back(known.size(i));
    stride.push_back(known.stride(i));
    flat.push_back(known.size(i));
  }
  return known.as_strided(size, stride, offset).reshape(flat);
}

Term map_term(const Tangent& t, Term term, Placement& p, const AxesOfMap& map, const AxesMap& f,
              const Tensor& known) {
  const Parts parts(term, p, map);
  const bool seeded = t.K > 1;
  if (seeded && parts.tied) ledger().densified.insert(ledger().op);
  const Tensor rows = rows_of(term, p, parts, map, seeded, t.options);
  if (seeded) ledger().reserve(parts.count() * numel_of(map.out), rows.element_size());
  const Tensor mapped = f(rows, known_of(known, term, p, parts, map));

  move_axes(term, p, map.to, map.out_shape);
  Term out;
  out.k0 = term.k0;
  out.v0 = term.v0;
  out.alpha = term.alpha;
  out.held = term.held;
  out.spoiled = term.spoiled;
  Shape sizes;
  auto append = [&](Dim dim, int64_t size) {
    out.dims.push_back(dim);
    sizes.push_back(size);
  };
  for (const Shape* dims : {&parts.rows, &parts.known}) {
    for (int64_t d : *dims) append(term.dims[d], term.dims[d].n);
  }
  const Shape strides = row_major(map.out_shape);
  size_t i = 0;
  for (size_t a = 0; a < map.mapped.size(); ++a) {
    if (!map.mapped[a]) continue;
    append({map.out[i], 0, strides[a]}, map.out[i]);
    ++i;
  }
  for (int64_t d : parts.lazy) append(term.dims[d], 1);
  out.core = mapped.reshape(sizes);
  out.owned = true;
  squeeze(out);
  settle(out);
  return out;
}

// Terms that together have as many rows as the dense box are added up first: the map then runs once.
void box_if_better(Tangent& t, const AxesOfMap& map) {
  if (t.terms.size() < 2) return;
  int64_t rows = 0;
  bool tied = false;
  for (Term& term : t.terms) {
    Placement p;
    place_or_densify(t, term, p, [&map](int64_t a) { return !map.mapped[a] && map.known_stride[a] == 0; });
    rows += Parts(term, p, map).count();
    for (const Dim& dim : term.dims) tied = tied || (dim.ks != 0 && dim.vs != 0);
  }
  const auto [first, last] = seed_range(t);
  if (rows < (last - first) * (t.numel() / numel_of(map.in))) return;
  if (tied && t.K > 1) ledger().densified.insert(ledger().op);
  densify(t);
}

}  // namespace

Tangent map_axes(Tangent t, c10::IntArrayRef axes, c10::IntArrayRef sizes, const AxesMap& f,
                 const Tensor& known) {
  const AxesOfMap map(t.shape, axes, sizes, known);
  Tangent out = zero_like(t, map.out_shape);
  if (t.zero() || numel_of(map.out_shape) == 0) return out;
  box_if_better(t, map);
  for (Term& term : t.terms) {
    Placement p;
    place_or_densify(t, term, p, [&map](int64_t a) { return !map.mapped[a] && map.known_stride[a] == 0; });
    out.terms.push_back(map_term(t, std::move(term), p, map, f, known));
    const Term& made = out.terms.back();
    out.options = out.options.dtype((made.core.defined() ? made.core : made.coef).dtype());
  }
  return out;
}

Tangent map_rows(Tangent t, c10::IntArrayRef out_shape, const std::function<Tensor(const Tensor&)>& f) {
  const Shape in = t.shape;
  const int64_t elements = t.numel(), results = numel_of(out_shape);
  auto flat = [&](const Tensor& rows, const Tensor&) {
    Shape shape{rows.size(0)};
    shape.append(in.begin(), in.end());
    return f(rows.reshape(shape)).reshape({rows.size(0), 1, results});
  };
  return view(map_axes(view(std::move(t), {elements}), {0}, {results}, flat), out_shape);
}

}  // namespace hesse
