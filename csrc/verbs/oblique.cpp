#include "verbs/oblique.h"

#include "ledger.h"
#include "verbs/terms.h"

#include <algorithm>

namespace hesse {

namespace {

// A view whose dimensions move along several axes at once (a diagonal), or several of them along one axis
// (windows that overlap): step[j][a].
struct Oblique {
  std::vector<Shape> step;
  Shape start;
  std::vector<bool> axis, dim;  // those of which that is so
  bool twice = false;           // they meet elements twice
};

bool resolve(const Geometry& g, c10::IntArrayRef shape, Oblique& o) {
  const size_t axes = shape.size(), dims = g.size.size();
  const Shape strides = row_major(shape);
  o = {std::vector<Shape>(dims, Shape(axes, 0)), Shape(axes, 0), std::vector<bool>(axes),
       std::vector<bool>(dims), false};
  Shape last(axes, 0), uses(axes, 0);
  for (size_t a = 0; a < axes; ++a) last[a] = o.start[a] = (g.offset / strides[a]) % shape[a];
  for (size_t j = 0; j < dims; ++j) {
    if (g.size[j] == 1) continue;
    int64_t stride = g.stride[j];
    for (size_t a = 0; a < axes; ++a) {
      if (shape[a] == 1) continue;
      o.step[j][a] = stride / strides[a];
      stride %= strides[a];
      last[a] += o.step[j][a] * (g.size[j] - 1);
      uses[a] += o.step[j][a] > 0;
      if (last[a] >= shape[a]) return false;
    }
  }
  for (bool more = true; more;) {  // what shares an axis with an oblique dimension is one too
    more = false;
    for (size_t j = 0; j < dims; ++j) {
      const auto moves = std::count_if(o.step[j].begin(), o.step[j].end(), [](int64_t s) { return s > 0; });
      bool oblique = moves > 1;
      for (size_t a = 0; a < axes; ++a) oblique = oblique || (o.step[j][a] > 0 && (uses[a] > 1 || o.axis[a]));
      if (!oblique || o.dim[j]) continue;
      more = o.dim[j] = true;
      for (size_t a = 0; a < axes; ++a) o.axis[a] = o.axis[a] || o.step[j][a] > 0;
    }
  }
  Geometry own;
  for (size_t j = 0; j < dims; ++j) {
    if (!o.dim[j]) continue;
    own.size.push_back(g.size[j]);
    own.stride.push_back(g.stride[j]);
  }
  o.twice = overlaps(own);
  return !own.size.empty();
}

// The oblique axes replaced by the oblique dimensions, behind the others. A term that goes along each of
// these axes once, and all along, only changes its strides.
Term oblique(const Tangent& t, Term term, const Geometry& g, const Oblique& o, c10::IntArrayRef shape) {
  const Shape strides = row_major(shape);
  Placement p;
  place_or_densify(t, term, p);
  Shape along(t.shape.size(), -1);
  auto regular = [&] {
    std::fill(along.begin(), along.end(), -1);
    for (int64_t d = 0; d < term.rank(); ++d) {
      const int64_t a = p.axis[d];
      if (a < 0 || !o.axis[a]) continue;
      if (along[a] >= 0 || term.dims[d].indexed() || p.step[d] != 1 || p.offset[a] != 0 ||
          term.dims[d].n != t.shape[a])
        return false;
      along[a] = d;
    }
    for (size_t a = 0; a < along.size(); ++a) {
      if (o.axis[a] && (along[a] < 0 || (o.twice && term.dims[along[a]].ks != 0))) return false;
    }
    return true;
  };
  if (!regular()) {
    ledger().densified.insert(ledger().op);
    term = densify(t, term);
    TORCH_INTERNAL_ASSERT(place(term, t.shape, p) && regular());
  }
  Term out;
  out.alpha = term.alpha;
  out.held = term.held;
  out.owned = term.owned;
  out.spoiled = term.spoiled;
  out.k0 = term.k0;
  Shape kept, to(t.shape.size(), -1);
  int64_t axis = 0;
  for (size_t a = 0; a < to.size(); ++a) {
    if (!o.axis[a]) {
      to[a] = axis++;
    } else {
      out.k0 += o.start[a] * term.dims[along[a]].ks;
    }
  }
  move_axes(term, p, to, shape);
  out.v0 = term.v0;
  for (int64_t d = 0; d < term.rank(); ++d) {
    if (p.axis[d] >= 0 && o.axis[p.axis[d]]) continue;
    kept.push_back(d);
    out.dims.push_back(term.dims[d]);
  }
  for (size_t j = 0; j < g.size.size(); ++j) {
    if (!o.dim[j]) continue;
    Dim dim{g.size[j], 0, strides[axis++]};
    for (size_t a = 0; a < to.size(); ++a) {
      if (o.step[j][a] > 0) dim.ks += o.step[j][a] * term.dims[along[a]].ks;
    }
    out.dims.push_back(dim);
  }
  auto moved = [&](const Tensor& c) {
    if (!c.defined()) return c;
    Window w{{}, {}, c.storage_offset()};
    for (int64_t d : kept) {
      w.size.push_back(c.size(d));
      w.stride.push_back(c.stride(d));
    }
    for (size_t a = 0; a < to.size(); ++a) {
      if (o.axis[a] && varies(c, along[a])) w.offset += o.start[a] * c.stride(along[a]);
    }
    for (size_t j = 0; j < g.size.size(); ++j) {
      if (!o.dim[j]) continue;
      int64_t stride = 0;
      bool any = false;
      for (size_t a = 0; a < to.size(); ++a) {
        if (o.step[j][a] == 0 || !varies(c, along[a])) continue;
        stride += o.step[j][a] * c.stride(along[a]);
        any = true;
      }
      w.size.push_back(any ? g.size[j] : 1);
      w.stride.push_back(stride);
    }
    return windowed(c, w);
  };
  out.coef = moved(term.coef);
  out.core = moved(term.core);
  squeeze(out);
  settle(out);
  return out;
}

}  // namespace

std::optional<Straight> straightened(const Tangent& t, const Geometry& g) {
  Oblique o;
  if (!resolve(g, t.shape, o)) return std::nullopt;
  Shape straight;  // the shape in which the view goes along one axis in each dimension
  for (size_t a = 0; a < t.shape.size(); ++a) {
    if (!o.axis[a]) straight.push_back(t.shape[a]);
  }
  for (size_t j = 0; j < g.size.size(); ++j) {
    if (o.dim[j]) straight.push_back(g.size[j]);
  }
  Tangent spread = zero_like(t, straight);
  for (const Term& term : t.terms) spread.terms.push_back(oblique(t, term, g, o, straight));
  const Shape strides = row_major(straight);
  Geometry rest{g.size, Shape(g.size.size(), 0), 0};
  size_t next = 0;
  for (size_t a = 0; a < t.shape.size(); ++a) {
    if (o.axis[a]) continue;
    rest.offset += o.start[a] * strides[next];
    for (size_t j = 0; j < g.size.size(); ++j) rest.stride[j] += o.step[j][a] * strides[next];
    ++next;
  }
  for (size_t j = 0; j < g.size.size(); ++j) {
    if (o.dim[j]) rest.stride[j] = strides[next++];
  }
  return Straight{std::move(spread), std::move(rest)};
}

}  // namespace hesse
