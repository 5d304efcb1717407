#include "verbs.h"

#include "contract.h"
#include "kernels/combine.h"
#include "ledger.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>

namespace hesse {

namespace {

bool varies(const Tensor& f, int64_t d) { return f.defined() && f.size(d) > 1; }

// Resolves a term on the axes of the tangent's shape, as a dense box when strides cannot express it.
void place_or_densify(const Tangent& t, Term& term, Placement& p) {
  if (place(term, t.shape, p)) return;
  ledger().densified.insert(ledger().op);
  term = densify(t, term);
  TORCH_INTERNAL_ASSERT(place(term, t.shape, p));
}

// Rewrites value strides for a shape in which old axis a is new axis to[a] (-1: gone, its offset is dropped).
void move_axes(Term& term, const Placement& p, c10::IntArrayRef to, c10::IntArrayRef shape) {
  const Shape strides = row_major(shape);
  for (int64_t d = 0; d < term.rank(); ++d) {
    const int64_t a = p.axis[d];
    term.dims[d].vs = a >= 0 && to[a] >= 0 ? p.step[d] * strides[to[a]] : 0;
  }
  term.v0 = 0;
  for (size_t a = 0; a < to.size(); ++a) {
    if (to[a] >= 0) term.v0 += p.offset[a] * strides[to[a]];
  }
}

// Appends a dimension along which nothing varies yet.
void append_dim(Term& term, Dim dim) {
  term.dims.push_back(dim);
  if (term.coef.defined()) term.coef = term.coef.unsqueeze(-1);
  if (term.core.defined()) term.core = term.core.unsqueeze(-1);
}

Shape sizes_of(const Term& t) {
  Shape s;
  for (const Dim& d : t.dims) s.push_back(d.n);
  return s;
}

bool same_memory(const Tensor& a, const Tensor& b) { return a.defined() && b.defined() && a.is_alias_of(b); }

// Says whose memory a core is that may have been replaced: `before` and `known` are what it may be a view of.
void claim(Term& term, const Tensor& before, const Tensor& known = {}) {
  if (!term.core.defined() || same_memory(term.core, known)) {
    term.owned = false;
  } else if (!same_memory(term.core, before)) {
    term.owned = true;
  }
}

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

// c as a factor of the term: one axis per dimension.
struct Window {
  Shape size, stride;
  int64_t offset;
  bool operator==(const Window& o) const {
    return size == o.size && stride == o.stride && offset == o.offset;
  }
};

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

Tensor windowed(const Tensor& c, const Window& w) {
  if (c.sizes() == c10::IntArrayRef(w.size) && c.strides() == c10::IntArrayRef(w.stride) &&
      c.storage_offset() == w.offset) {
    return c;
  }
  return c.as_strided(w.size, w.stride, w.offset);
}

}  // namespace

Tangent scale(Tangent t, double alpha) {
  for (Term& term : t.terms) term.alpha *= alpha;
  return t;
}

Tangent scale(Tangent t, const Tensor& factor) {
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
    if (!flat) place_or_densify(t, term, p);
    if (coef_on_seed(term)) fold_coef(term);
    const Window w = window(term, flat ? nullptr : &p, c);
    const Done* known = nullptr;
    for (const Done& d : done) {
      const bool same =
          term.coef.defined() ? d.before.defined() && d.before.is_same(term.coef) : !d.before.defined();
      if (same && d.window == w) known = &d;
    }
    if (known) {
      term.coef = known->after;
      continue;
    }
    const Tensor view = windowed(c, w);
    Tensor after = term.coef.defined() ? kernels::multiply(term.coef, view) : view;
    if (t.terms.size() > 1) done.push_back({term.coef, w, after});
    term.coef = std::move(after);
  }
  return t;
}

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
    place_or_densify(t, term, p);
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

namespace {

// Keeps the part of a term that lies on start + step * [0, count) of an axis, renumbered from 0.
enum class Cut { kept, dropped, irregular };

Cut cut_axis(Term& term, Placement& p, int64_t a, int64_t start, int64_t step, int64_t count, int64_t size) {
  if (start == 0 && step == 1 && count == size) return Cut::kept;
  int64_t d = -1;
  for (int64_t i = 0; i < term.rank(); ++i) {
    if (p.axis[i] != a) continue;
    if (d >= 0) return Cut::irregular;
    d = i;
  }
  const int64_t from = p.offset[a] - start;
  if (d < 0) {
    if (from < 0 || from % step != 0 || from / step >= count) return Cut::dropped;
    p.offset[a] = from / step;
    return Cut::kept;
  }
  const int64_t s = p.step[d];
  // Index i of the dimension lands on (from + i s) / step.
  int64_t first = 0, stride = 1;
  if (s % step == 0) {
    if (from % step != 0) return Cut::dropped;
  } else if (step % s == 0) {
    if (from % s != 0) return Cut::dropped;
    stride = step / s;
    first = ((-from / s) % stride + stride) % stride;
  } else {
    return Cut::irregular;
  }
  if (from + first * s < 0) {
    const int64_t jump = stride * s;
    first += (-(from + first * s) + jump - 1) / jump * stride;
  }
  const int64_t last_value = (count - 1) * step;  // largest (from + i s) allowed
  if (first >= term.dims[d].n || from + first * s > last_value) return Cut::dropped;
  const int64_t last = std::min(term.dims[d].n - 1, (last_value - from) / s);
  const int64_t n = (last - first) / stride + 1;
  for (Tensor* f : {&term.coef, &term.core}) {
    if (varies(*f, d)) *f = f->slice(d, first, last + 1, stride);
  }
  term.k0 += first * term.dims[d].ks;
  term.dims[d] = {n, term.dims[d].ks * stride, term.dims[d].vs};
  p.offset[a] = (from + first * s) / step;
  p.step[d] = stride * s / step;
  return Cut::kept;
}

// Assigns each geometry dimension to an axis of `shape`: axis[j] (-1: broadcast), step[j], start per axis.
bool resolve(const Geometry& g, c10::IntArrayRef shape, Shape& axis, Shape& step, Shape& start) {
  const Shape strides = row_major(shape);
  const int64_t axes = static_cast<int64_t>(shape.size());
  start.assign(axes, 0);
  for (int64_t a = 0; a < axes; ++a) start[a] = (g.offset / strides[a]) % shape[a];
  std::vector<bool> used(axes, false);
  axis.clear();
  step.clear();
  for (size_t j = 0; j < g.size.size(); ++j) {
    if (g.size[j] == 1 || g.stride[j] == 0) {
      axis.push_back(-1);
      step.push_back(1);
      continue;
    }
    int64_t a = 0;
    while (a < axes && (shape[a] == 1 || strides[a] > g.stride[j])) ++a;
    if (a == axes || g.stride[j] % strides[a] != 0 || used[a]) return false;
    const int64_t s = g.stride[j] / strides[a];
    if (start[a] + (g.size[j] - 1) * s >= shape[a]) return false;
    used[a] = true;
    axis.push_back(a);
    step.push_back(s);
  }
  return true;
}

Tensor strided_rows(const Tensor& rows, const Geometry& g) {
  const int64_t numel = numel_of(rows.sizes().slice(1));
  Shape size{rows.size(0)}, stride{numel};
  size.append(g.size.begin(), g.size.end());
  stride.append(g.stride.begin(), g.stride.end());
  return rows.as_strided(size, stride, rows.storage_offset() + g.offset);
}

}  // namespace

bool overlaps(const Geometry& g) {
  c10::SmallVector<std::pair<int64_t, int64_t>, 6> dims;
  for (size_t j = 0; j < g.size.size(); ++j) {
    if (g.size[j] > 1) dims.emplace_back(g.stride[j], g.size[j]);
  }
  std::sort(dims.begin(), dims.end());
  int64_t reach = 0;
  for (const auto& [stride, size] : dims) {
    if (stride <= reach) return true;
    reach += (size - 1) * stride;
  }
  return false;
}

Tangent take(Tangent t, const Geometry& g) {
  if (numel_of(g.size) == 0) return zero_like(t, g.size);
  Shape axis, step, start;
  if (!resolve(g, t.shape, axis, step, start)) {
    return map_rows(t, g.size,
                    [&](const Tensor& rows) { return strided_rows(rows.contiguous(), g).contiguous(); });
  }
  const int64_t rank = static_cast<int64_t>(t.shape.size());
  Shape to(rank, -1);
  for (size_t j = 0; j < axis.size(); ++j) {
    if (axis[j] >= 0) to[axis[j]] = static_cast<int64_t>(j);
  }
  const Shape strides = row_major(g.size);
  Tangent out = zero_like(t, g.size);
  for (Term& source : t.terms) {
    Term term = source;
    Placement p;
    place_or_densify(t, term, p);
    Cut cut = Cut::kept;
    for (int attempt = 0; attempt < 2; ++attempt) {
      for (int64_t a = 0; a < rank && cut == Cut::kept; ++a) {
        const int64_t count = to[a] < 0 ? 1 : g.size[to[a]];
        cut = cut_axis(term, p, a, start[a], to[a] < 0 ? 1 : step[to[a]], count, t.shape[a]);
      }
      if (cut != Cut::irregular) break;
      // Two dimensions share the axis: as a box there is one.
      ledger().densified.insert(ledger().op);
      term = densify(t, source);
      TORCH_INTERNAL_ASSERT(place(term, t.shape, p));
      cut = Cut::kept;
    }
    if (cut == Cut::dropped) continue;
    move_axes(term, p, to, g.size);
    for (size_t j = 0; j < axis.size(); ++j) {
      if (axis[j] < 0 && g.size[j] > 1) append_dim(term, {g.size[j], 0, strides[j]});
    }
    squeeze(term);
    settle(term);
    out.terms.push_back(std::move(term));
  }
  return out;
}

Tangent put(Tangent t, const Geometry& g, c10::IntArrayRef shape) {
  Shape broadcast;
  for (size_t j = 0; j < g.size.size(); ++j) {
    if (g.stride[j] == 0 && g.size[j] > 1) broadcast.push_back(static_cast<int64_t>(j));
  }
  if (!broadcast.empty()) {
    Geometry rest = g;
    for (int64_t j : broadcast) rest.size[j] = 1;
    return put(sum(std::move(t), broadcast, true), rest, shape);
  }
  if (overlaps(g)) {
    const Shape target(shape.begin(), shape.end());
    return map_rows(t, shape, [&](const Tensor& rows) {
      const int64_t numel = numel_of(target);
      const Tensor index =
          at::arange(numel, rows.options().dtype(at::kLong)).as_strided(g.size, g.stride, g.offset);
      Shape size{rows.size(0)};
      size.append(target.begin(), target.end());
      return at::zeros({rows.size(0), numel}, rows.options())
          .index_add(1, index.reshape({-1}), rows.reshape({rows.size(0), -1}))
          .reshape(size);
    });
  }
  for (Term& term : t.terms) {
    Placement p;
    place_or_densify(t, term, p);
    for (int64_t d = 0; d < term.rank(); ++d) {
      term.dims[d].vs = p.axis[d] < 0 ? 0 : p.step[d] * g.stride[p.axis[d]];
    }
    term.v0 = g.offset;
    for (size_t a = 0; a < p.offset.size(); ++a) term.v0 += p.offset[a] * g.stride[a];
  }
  t.shape = Shape(shape.begin(), shape.end());
  return t;
}

// ---- linear maps along some axes ------------------------------------------------------------------------

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
  const Tensor rows = fills ? at::empty(shape, options) : at::zeros(shape, options);
  kernels::combine(fills ? kernels::Into::write : kernels::Into::add, rows, size, stride, offset, term.coef,
                   term.core, 1.0);
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
    place_or_densify(t, term, p);
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
    place_or_densify(t, term, p);
    out.terms.push_back(map_term(t, std::move(term), p, map, f, known));
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

namespace {

thread_local const Demand* demand = nullptr;

// The landing of a term whose dimensions (summed ones aside) are final.
std::optional<Landing> landing_of(const Term& term, const std::vector<bool>& reduce, c10::IntArrayRef shape) {
  if (!demand || c10::IntArrayRef(demand->shape) != shape) return std::nullopt;
  Term bare;
  bare.k0 = term.k0;
  bare.v0 = term.v0;
  for (int64_t d = 0; d < term.rank(); ++d) bare.dims.push_back(reduce[d] ? Dim{1, 0, 0} : term.dims[d]);
  if (!demand->to_input(bare)) return std::nullopt;
  return Landing{bare.dims, bare.k0, bare.v0, demand->v_shift, true};
}

// The three factors of a product term and which of their axes are summed; picks the order of products that
// materialises least.
// Returns whether only the upper triangle was computed.
bool multiply(Term& term, const Tensor& w, const std::vector<bool>& reduce, c10::IntArrayRef shape) {
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
    term.coef = contract(term.coef, w, sizes, reduce, false, term.alpha);
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
    place_or_densify(t, term, p);
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
    one.upper = multiply(term, windowed(w, {size, stride, offset}), reduce, shape);
    one.terms.push_back(std::move(term));
    accumulate(out, std::move(one), /*combining=*/!ends_here);
  }
  return out;
}

}  // namespace hesse
