// Grid sampling: output point p of an image x [N, C, S] is a weighted sum of the taps q around grid point p,
//
//     y[n, c, p] = sum_q w[n, p, q] x[n, c, index[n, p, q]],
//
// and w is a product over the axes of space of weights u_t, piecewise polynomial in one coordinate each:
//
//     nearest 1;   linear 1 - t, t;   cubic, in the distances t + 1, t, 1 - t, 2 - t.
//
// With A(w, x) for that sum, w_a = dw/dg_a and w_ab by the coordinates of the grid,
//
//     push   dy  = A(w, dx) + sum_a A(w_a, x) dg_a
//     pull   dgx = A(w, .)' dgy                         dgg_a = sum_c A(w_a, x) dgy
//     curve  dgx = sum_a A(w_a, .)' (gy dg_a)           dgg_a = sum_c gy (A(w_a, dx) + sum_b A(w_ab, x) dg_b)
//
// Samples, channels and output points stay apart, but for the points and pixels of x's own tangent.
#include "factors.h"
#include "resampling.h"
#include "shapes.h"
#include "spatial.h"

namespace hesse::rules {

namespace {

enum Interpolation : int64_t { linear_taps, nearest_taps, cubic_taps };
enum Padding : int64_t { zeros, border, reflection };

// Sizes: N, C, S flat, P flat, and how many coordinates a grid point has.
struct Sizes {
  Shape image, result;
  int64_t N, C, S, P, A;

  Sizes(const Shape& x, const Shape& y)
      : image(x),
        result(y),
        N(y[0]),
        C(y[1]),
        S(numel_of(Shape(x.begin() + 2, x.end()))),
        P(numel_of(Shape(y.begin() + 2, y.end()))),
        A(static_cast<int64_t>(y.size()) - 2) {}
};

// ---- where a grid point lies --------------------------------------------------------------------------

// A coordinate in pixels and its derivative by the grid's. Both are constants: how far a point lies from its
// tap is what follows the grid.
struct Place {
  Tensor at, slope;

  void clip(int64_t size) {
    slope = slope * at::logical_and(at > 0, at < size - 1);  // the borders count as outside
    at = at.clamp(0, size - 1);
  }
  void reflect(double low, double span) {
    if (span == 0) {
      at = at::zeros_like(at);
      slope = at::zeros_like(at);
      return;
    }
    const Tensor from_low = at - low, before = from_low < 0, away = from_low.abs();
    const Tensor extra = away.fmod(span), odd = (away / span).floor().fmod(2) != 0;
    at = at::where(odd, at::rsub(extra, span), extra) + low;
    slope = slope * at::where(at::logical_xor(odd, before), -1, 1);
  }
  void keep_within(int64_t size, int64_t padding, bool align_corners) {
    if (padding == reflection) {
      const auto n = static_cast<double>(size);
      reflect(align_corners ? 0 : -0.5, align_corners ? n - 1 : n);
    }
    if (padding != zeros) clip(size);
  }
};

// One axis of space: what its taps weigh, by grid point and tap [N, P, T]. A derivative that is zero
// everywhere is left undefined.
struct Taps {
  Tensor index, u, u1, u2;
};

// The weights of the cubic's four taps at distances from the point, and their derivatives by t.
Taps cubic(const Tensor& t, const Tensor& slope) {
  constexpr double a = -0.75;
  auto near = [&](const Tensor& d) { return ((a + 2) * d - (a + 3)) * d * d + 1; };
  auto near1 = [&](const Tensor& d) { return (3 * (a + 2) * d - 2 * (a + 3)) * d; };
  auto near2 = [&](const Tensor& d) { return 6 * (a + 2) * d - 2 * (a + 3); };
  auto far = [&](const Tensor& d) { return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a; };
  auto far1 = [&](const Tensor& d) { return (3 * a * d - 10 * a) * d + 8 * a; };
  auto far2 = [&](const Tensor& d) { return 6 * a * d - 10 * a; };
  const Tensor r = at::rsub(t, 1), before = t + 1, after = r + 1;
  return {{},
          at::stack({far(before), near(t), near(r), far(after)}, -1),
          at::stack({far1(before), near1(t), -near1(r), -far1(after)}, -1) * slope,
          at::stack({far2(before), near2(t), near2(r), far2(after)}, -1) * slope.square()};
}

struct Mode {
  int64_t interpolation_mode, padding_mode;
  bool align_corners;
};
template <class N>
Mode mode_of(const N& n) {
  if constexpr (requires { n.align_corners; }) {
    return {n.interpolation_mode, n.padding_mode, n.align_corners};
  } else {
    return {linear_taps, zeros, true};  // all that cuDNN knows
  }
}

// g: one coordinate of the grid, [N, P].
Taps taps_along(const Mode& n, const Tensor& g, int64_t size) {
  const bool is_cubic = n.interpolation_mode == cubic_taps, is_nearest = n.interpolation_mode == nearest_taps;
  const Tensor fixed = g.detach();
  const auto extent = static_cast<double>(n.align_corners ? size - 1 : size);
  Place point{n.align_corners ? (fixed + 1) / 2 * (size - 1) : ((fixed + 1) * size - 1) / 2,
              at::full_like(fixed, extent / 2)};
  if (!is_cubic) point.keep_within(size, n.padding_mode, n.align_corners);
  const Tensor tap = is_nearest ? point.at.round() : point.at.floor(), slope = point.slope.unsqueeze(-1);
  Tensor t = point.at - tap;
  if (c10::GradMode::is_enabled()) t = t + point.slope * (g - fixed);

  Taps taps;
  if (is_cubic) {
    taps = cubic(t, slope);
  } else if (is_nearest) {
    taps.u = at::ones_like(slope);
  } else {
    taps.u = at::stack({at::rsub(t, 1), t}, -1);
    taps.u1 = at::cat({-slope, slope}, -1);
  }
  const Tensor offsets = at::arange(taps.u.size(-1), tap.options()) - (is_cubic ? 1 : 0);
  Place at{tap.unsqueeze(-1) + offsets, slope};
  if (is_cubic) at.keep_within(size, n.padding_mode, n.align_corners);
  taps.index = at.at.to(at::kLong).clamp(0, size - 1);
  const Tensor inside = at::logical_and(at.at >= 0, at.at <= size - 1),
               none = at::zeros({}, taps.u.options());
  for (Tensor* u : {&taps.u, &taps.u1, &taps.u2}) {
    if (u->defined()) *u = at::where(inside, *u, none);
  }
  return taps;
}

// All taps q of a point, one for each combination of those along the axes.
struct Stencil {
  std::vector<Taps> axes;  // of space; the coordinates of a grid point come in the opposite order

  Stencil(const Mode& n, const Tensor& grid, const Sizes& z) {
    const Tensor g = grid.reshape({z.N, z.P, z.A});
    for (int64_t s = 0; s < z.A; ++s)
      axes.push_back(taps_along(n, g.select(-1, z.A - 1 - s), z.image[2 + s]));
  }
  bool bends() const { return axes[0].u1.defined(); }

  // [N, P, Q], counted as pixels are.
  Tensor index(const Sizes& z) const {
    Tensor i = axes[0].index;
    for (size_t s = 1; s < axes.size(); ++s) {
      i = (i.unsqueeze(-1) * z.image[2 + s] + axes[s].index.unsqueeze(-2)).flatten(2);
    }
    return i;
  }
  // w differentiated by some coordinates, [N, P, Q]; undefined: 0.
  Tensor weights(std::initializer_list<int64_t> by) const {
    Tensor w;
    for (size_t s = 0; s < axes.size(); ++s) {
      const auto a = static_cast<int64_t>(axes.size() - 1 - s);
      const auto order = std::count(by.begin(), by.end(), a);
      const Tensor& u = order == 0 ? axes[s].u : order == 1 ? axes[s].u1 : axes[s].u2;
      if (!u.defined()) return {};
      w = w.defined() ? (w.unsqueeze(-1) * u.unsqueeze(-2)).flatten(2) : u;
    }
    return w;
  }
  // w_a and w_ab for all a, b: [N, P, Q, A] and [N, P, Q, A A].
  Tensor first(const Sizes& z) const {
    std::vector<Tensor> w;
    for (int64_t a = 0; a < z.A; ++a) w.push_back(weights({a}));
    return at::stack(w, -1);
  }
  Tensor second(const Sizes& z) const {
    std::vector<Tensor> w;
    for (int64_t a = 0; a < z.A; ++a) {
      for (int64_t b = 0; b < z.A; ++b) {
        const Tensor ab = weights({a, b});
        w.push_back(ab.defined() ? ab : at::zeros_like(weights({})));
      }
    }
    return at::stack(w, -1);
  }
};

// ---- sums over taps -----------------------------------------------------------------------------------

// A(w, x): x [R, D, S], index [D, P, Q], w [D, P, Q, B] -> [R, D, P, B].
Tensor sums(const Tensor& x, const Tensor& index, const Tensor& w) {
  Tensor y;
  const Shape size{x.size(0), index.size(0), index.size(1)};
  for (int64_t q = 0; q < index.size(-1); ++q) {
    const Tensor tap = x.gather(-1, index.select(-1, q).expand(size)).unsqueeze(-1), w_q = w.select(2, q);
    y = y.defined() ? at::addcmul(y, tap, w_q) : tap * w_q;
  }
  return y;
}

// Its transpose in x: y [R, D, P, B] -> [R, D, S].
Tensor sums_back(const Tensor& y, const Tensor& index, const Tensor& w, int64_t S) {
  Tensor x = at::zeros({y.size(0), y.size(1), S}, y.options());
  const Shape size{y.size(0), y.size(1), y.size(2)};
  for (int64_t q = 0; q < index.size(-1); ++q) {
    const Tensor part = (y * w.select(2, q)).sum(-1);
    x.scatter_add_(-1, index.select(-1, q).expand(size), part);
  }
  return x;
}

// What the map does to each sample: the numbers of the samples are what is known along its axes.
template <class F>
Tangent map_samples(const Tangent& t, Shape from, Shape to, const Tensor& index, const Tensor& w, F f) {
  const Tensor sample = at::arange(t.shape[0], index.options()).unsqueeze(1);
  return map_axes(
      view(t, from), {2, 3}, {to[2], to[3]},
      [&](const Tensor& rows, const Tensor& known) {
        return f(rows, index.index_select(0, known), w.index_select(0, known));
      },
      sample);
}

// A(w, dx) as [N, C, P, B], and A(w, .)' of such a tangent as one of x.
Tangent sampled(const Tangent& dx, const Sizes& z, const Tensor& index, const Tensor& w) {
  return map_samples(
      dx, {z.N, z.C, z.S, 1}, {z.N, z.C, z.P, w.size(-1)}, index, w,
      [](const Tensor& x, const Tensor& i, const Tensor& v) { return sums(x.squeeze(-1), i, v); });
}
Tangent sampled_back(const Tangent& dy, const Sizes& z, const Tensor& index, const Tensor& w) {
  auto f = [&z](const Tensor& y, const Tensor& i, const Tensor& v) {
    return sums_back(y, i, v, z.S).unsqueeze(-1);
  };
  return view(map_samples(dy, {z.N, z.C, z.P, w.size(-1)}, {z.N, z.C, z.S, 1}, index, w, f), z.image);
}

// A(w, x) for x itself, as [N, C, P, B].
Tensor sampled(const Tensor& x, const Sizes& z, const Tensor& index, const Tensor& w) {
  return sums(x.reshape({z.N, z.C, z.S}).transpose(0, 1), index, w).transpose(0, 1);
}

// ---- the rule -----------------------------------------------------------------------------------------

// saved: index, w [N, P, Q, 1], and of an active grid that bends y: w_a [N, P, Q, A], A(w_a, x) [N, C, P, A].
// bent: sum_c gy A(w_ab, x), as [N, P, A, A].
template <class N>
struct Sampling {
  static Tensor image(Local& l) {
    auto& n = node<N>(l);
    if constexpr (requires { n.input_; }) {
      return l.unpack(n.input_);
    } else {
      return l.unpack(n.self_);
    }
  }
  static Stencil stencil(Local& l, const Sizes& z) {
    const Tensor grid = l.unpack(node<N>(l).grid_);
    const bool narrow = grid.scalar_type() == at::kHalf || grid.scalar_type() == at::kBFloat16;
    return Stencil(mode_of(node<N>(l)), narrow ? grid.to(at::kFloat) : grid, z);
  }
  static Sizes sizes(Local& l) {
    if (l.active[0]) return Sizes(l.in_shape[0], l.out_shape[0]);
    const Tensor x = image(l);
    return Sizes(Shape(x.sizes().begin(), x.sizes().end()), l.out_shape[0]);
  }

  static void save(Local& l) {
    const Sizes z = sizes(l);
    const Stencil s = stencil(l, z);
    l.saved = {s.index(z), s.weights({}).unsqueeze(-1).to(dtype_of(l))};
    if (!l.active[1] || !s.bends()) return;
    l.saved.push_back(s.first(z).to(dtype_of(l)));
    l.saved.push_back(sampled(image(l), z, l.saved[0], l.saved[2]));
  }
  static bool bends(const Local& l) { return l.saved.size() > 2; }

  static Tangents push(Local& l, const Tangents& dx) {
    const Sizes z = sizes(l);
    Tangents dy(1);
    if (!dx[0].zero()) dy[0] = view(sampled(dx[0], z, l.saved[0], l.saved[1]), z.result);
    if (!dx[1].zero() && bends(l)) {
      const Tangent t = view(dx[1], {z.N, z.P, z.A});
      Tangent moved = view(einsum(t, "npa", l.saved[3], "ncpa", "ncp"), z.result);
      if (dy[0].zero()) {
        dy[0] = std::move(moved);
      } else {
        accumulate(dy[0], std::move(moved));
      }
    }
    return dy;
  }

  static Tangents pull(Local& l, const Tangents& dgy) {
    const Sizes z = sizes(l);
    Tangents dgx(2);
    if (l.wanted[0]) dgx[0] = sampled_back(dgy[0], z, l.saved[0], l.saved[1]);
    if (l.wanted[1] && bends(l)) {
      const Tangent t = view(dgy[0], {z.N, z.C, z.P});
      dgx[1] = view(einsum(t, "ncp", l.saved[3], "ncpa", "npa"), l.in_shape[1]);
    }
    return dgx;
  }

  static Tangents curve(Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
    Tangents dgx(2);
    if (!bends(l)) return dgx;
    const Sizes z = sizes(l);
    const Tensor g = gy[0].reshape({z.N, z.C, z.P});
    if (l.wanted[0] && !dx[1].zero()) {
      const Tangent t = view(dx[1], {z.N, z.P, z.A});
      dgx[0] = sampled_back(einsum(t, "npa", g, "ncp", "ncpa"), z, l.saved[0], l.saved[2]);
    }
    if (!l.wanted[1]) return dgx;
    Tangent dgg;
    if (!dx[0].zero())
      dgg = sum(scale(sampled(dx[0], z, l.saved[0], l.saved[2]), g.unsqueeze(-1)), {1}, false);
    if (!dx[1].zero()) {
      if (l.bent.empty()) {
        const Tensor w = stencil(l, z).second(z).to(dtype_of(l));
        const Tensor bent = (sampled(image(l), z, l.saved[0], w) * g.unsqueeze(-1)).sum(1);
        l.bent = {bent.reshape({z.N, z.P, z.A, z.A})};
      }
      Tangent t = einsum(view(dx[1], {z.N, z.P, z.A}), "npb", l.bent[0], "npab", "npa");
      if (dgg.zero()) {
        dgg = std::move(t);
      } else {
        accumulate(dgg, std::move(t));
      }
    }
    if (!dgg.zero()) dgx[1] = view(std::move(dgg), l.in_shape[1]);
    return dgx;
  }

  static void add(const char* name) {
    Rule rule;
    rule.save = save;
    rule.push = push;
    rule.pull = pull;
    rule.curve = curve;
    add_rule(name, std::move(rule));
  }
};

// The grid of affine maps theta [N, A, A + 1]: grid[n, p, i] = sum_j base[p, j] theta[n, i, j].
void affine_grid() {
  using N = gen::AffineGridGeneratorBackward0;
  auto einsum_with = [](Local& l, const Tangent& t, const char* axes, const char* out) {
    return einsum(t, axes, l.saved[0], "pj", out);
  };
  Rule rule;
  rule.save = [](Local& l) {
    const Shape& theta = l.in_shape[0];
    const auto options = l.out_options[0];
    const int64_t A = theta[1];
    const Tensor ones = at::eye(A + 1, options).unsqueeze(1);  // theta_j has a one at [0, j]
    Shape size = ints(node<N>(l).size);
    size[0] = A + 1;
    const Tensor maps = at::cat({ones, at::zeros({A + 1, A - 1, A + 1}, options)}, 1);
    const Tensor grid = at::affine_grid_generator(maps, size, node<N>(l).align_corners);
    l.saved = {grid.select(-1, 0).flatten(1).t()};
  };
  rule.push = [einsum_with](Local& l, const Tangents& dx) -> Tangents {
    return {view(einsum_with(l, dx[0], "nij", "npi"), l.out_shape[0])};
  };
  rule.pull = [einsum_with](Local& l, const Tangents& dgy) -> Tangents {
    const Shape& theta = l.in_shape[0];
    const Tangent t = view(dgy[0], {theta[0], l.saved[0].size(0), theta[1]});
    return {einsum_with(l, t, "npi", "nij")};
  };
  add_rule("AffineGridGeneratorBackward0", std::move(rule));
}

}  // namespace

void grid_sampling() {
  Sampling<gen::GridSampler2DBackward0>::add("GridSampler2DBackward0");
  Sampling<gen::GridSampler3DBackward0>::add("GridSampler3DBackward0");
  Sampling<gen::CudnnGridSamplerBackward0>::add("CudnnGridSamplerBackward0");
  affine_grid();
}

}  // namespace hesse::rules
