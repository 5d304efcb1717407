// Distances between rows, y = |z|_p with z_prm = x1_pm - x2_rm and the slope f = dy/dz:
//
//     push   dy_pr  = sum_m f dx1_pm - sum_m f dx2_rm
//     pull   dx1_pm = sum_r f dgy_pr,  dx2_rm = -sum_p f dgy_pr
//     curve  of 1 < p < inf, with g = gy (p - 1) / y and a = gy (p - 1) |z|^(p-2) y^(1-p):
//            a dz - g f dy, summed likewise
//
// A distance depends on the rows of its own pair alone, and each product here carries the axes p and r with
// their ties. Where two rows coincide PyTorch's convention is that the slope is zero; so is the curvature.
#include "factors.h"

#include <ATen/ATen.h>

#include <cmath>

namespace hesse::rules {

namespace {

bool bends(double p) { return p != 0 && p != 1 && !std::isinf(p); }

// y: with a last axis of 1.
Tensor slope(const Tensor& z, const Tensor& y, double p) {
  const Tensor size = z.abs(), same = y.eq(0);
  if (p == 0) return at::zeros_like(z);
  if (p == 1) return z.sgn();
  if (std::isinf(p)) return z.sgn() * size.eq(y).to(z.scalar_type());
  const Tensor apart = y.masked_fill(same, 1);
  if (p == 2) return (z / apart).masked_fill(same, 0);
  if (p >= 2) return z.sgn() * size.pow(p - 1) * apart.pow(1 - p);
  // Below 2 a coordinate in which the rows agree has no part in the curvature of the others.
  const Tensor none = z.eq(0);
  return (z.sgn() * size.masked_fill(none, 1).pow(p - 1) * apart.pow(1 - p)).masked_fill(same, 0);
}

// |z|^(p-2) y^(1-p)
Tensor bow(const Tensor& z, const Tensor& y, double p) {
  const Tensor same = y.eq(0), apart = y.masked_fill(same, 1);
  if (p == 2) return apart.reciprocal().masked_fill(same, 0).expand_as(z);
  Tensor size = z.abs();
  size = p < 1 ? size.masked_fill(z.eq(0), INFINITY) : size.masked_fill(same, 1);
  return (size.pow(p - 2) * apart.pow(1 - p)).masked_fill(same, 0);
}

// y is formed again: autograd can differentiate it more than once, and where rows coincide it is zero
// exactly, which it need not be where the op went by a matrix product.
void save_pairs(Local& l, const Tensor& z, double p) {
  const Tensor y = at::linalg_vector_norm(z, p, c10::IntArrayRef{3}, true);
  l.saved = {z, y, slope(z, y, p)};
}

// saved: z [B, p, r, m], y [B, p, r, 1], f; bent: g [B, p, r], a, and a summed over r and over p.
struct Pairs {
  Local& l;
  double p;
  bool to_first = true, to_second = true;

  const Tensor& z() const { return l.saved[0]; }
  const Tensor& y() const { return l.saved[1]; }
  const Tensor& f() const { return l.saved[2]; }
  int64_t batch() const { return z().size(0); }

  // dx: [B, p, m] and [B, r, m].
  Tangent push(const Tangents& dx) const {
    Tangent dy;
    if (!dx[0].zero()) add_to(dy, einsum(dx[0], "bpm", f(), "bprm", "bpr"));
    if (!dx[1].zero()) add_to(dy, scale(einsum(dx[1], "brm", f(), "bprm", "bpr"), -1.0));
    return dy;
  }
  Tangents pull(const Tangent& g) const {
    Tangents dgx(2);
    if (to_first) dgx[0] = einsum(g, "bpr", f(), "bprm", "bpm");
    if (to_second) dgx[1] = scale(einsum(g, "bpr", f(), "bprm", "brm"), -1.0);
    return dgx;
  }
  Tangents curve(const Tensor& gy, const Tangents& dx) const {
    if (l.bent.empty()) {
      const Tensor same = y().eq(0), weight = gy.unsqueeze(3) * (p - 1);
      const Tensor a = weight * bow(z(), y(), p);
      l.bent = {(weight / y().masked_fill(same, 1)).masked_fill(same, 0).squeeze(3), a, a.sum(2), a.sum(1)};
    }
    Tangents dgx = pull(scale(scale(push(dx), l.bent[0]), -1.0));
    if (to_first) {
      if (!dx[0].zero()) add_to(dgx[0], scale(dx[0], l.bent[2]));
      if (!dx[1].zero()) add_to(dgx[0], scale(einsum(dx[1], "brm", l.bent[1], "bprm", "bpm"), -1.0));
    }
    if (to_second) {
      if (!dx[1].zero()) add_to(dgx[1], scale(dx[1], l.bent[3]));
      if (!dx[0].zero()) add_to(dgx[1], scale(einsum(dx[0], "bpm", l.bent[1], "bprm", "brm"), -1.0));
    }
    return dgx;
  }
};

// [*, p, m] broadcast to the batch, as [B, p, m]; and back.
Tangent rows(const Local& l, Tangent t) {
  Shape s = l.batch;
  s.push_back(t.shape[t.shape.size() - 2]);
  s.push_back(t.shape.back());
  const Shape flat{numel_of(l.batch), s[s.size() - 2], s.back()};
  return view(expand(std::move(t), s), flat);
}
Tangent unrolled(const Local& l, Tangent t) {
  Shape s = l.batch;
  s.push_back(t.shape[1]);
  s.push_back(t.shape[2]);
  return view(std::move(t), s);
}

template <class N>
double order(const N& n) {
  if constexpr (requires { n.p; }) {
    return n.p;
  } else {
    return 2.0;
  }
}

template <class N>
void cross_distances(const char* name) {
  auto pairs = [](Local& l) { return Pairs{l, order(node<N>(l)), l.wanted[0], l.wanted[1]}; };
  auto inputs = [](Local& l, const Tangents& dx) {
    Tangents flat(2);
    for (size_t i = 0; i < 2; ++i) {
      if (!dx[i].zero()) flat[i] = rows(l, dx[i]);
    }
    return flat;
  };
  auto results = [](Local& l, Tangents dgx) {
    for (size_t i = 0; i < 2; ++i) {
      if (dgx[i].K > 0) dgx[i] = unrolled(l, std::move(dgx[i]));
    }
    return dgx;
  };
  Rule rule;
  rule.save = [](Local& l) {
    auto& n = node<N>(l);
    const Tensor z = l.unpack(n.x1_).unsqueeze(-2) - l.unpack(n.x2_).unsqueeze(-3);
    l.batch = Shape(z.sizes().begin(), z.sizes().end() - 3);
    save_pairs(l, z.reshape({numel_of(l.batch), z.size(-3), z.size(-2), z.size(-1)}), order(n));
  };
  rule.push = [pairs, inputs](Local& l, const Tangents& dx) -> Tangents {
    return {view(pairs(l).push(inputs(l, dx)), l.out_shape[0])};
  };
  rule.pull = [pairs, results](Local& l, const Tangents& dgy) {
    const Tensor& z = l.saved[0];
    return results(l, pairs(l).pull(view(dgy[0], {z.size(0), z.size(1), z.size(2)})));
  };
  rule.curve = [pairs, inputs, results](Local& l, const std::vector<Tensor>& gy,
                                        const Tangents& dx) -> Tangents {
    const Pairs seen = pairs(l);
    if (!bends(seen.p) || l.saved[0].numel() == 0) return Tangents(2);
    const Tensor& z = seen.z();
    return results(l, seen.curve(gy[0].reshape({z.size(0), z.size(1), z.size(2)}), inputs(l, dx)));
  };
  add_rule(name, std::move(rule));
}

// Of all pairs i < j of rows of one matrix [n, m], in a row: the upper triangle of the square of distances.
// The triangle is no strided view of the square, but each of its rows is: where the square would be large,
// they are taken one by one.
struct Triangle {
  int64_t n;
  int64_t pairs() const { return n * (n - 1) / 2; }

  Geometry row_in_square(int64_t i) const { return {{n - 1 - i}, {1}, i * n + i + 1}; }
  Geometry row_in_pairs(int64_t i) const { return {{n - 1 - i}, {1}, i * (2 * n - i - 1) / 2}; }
  bool small(const Tangent& t) const { return t.K == 1 || n <= 64; }
  Tensor index(const at::TensorOptions& options) const {
    const Tensor ij = at::triu_indices(n, n, 1, options.dtype(at::kLong).requires_grad(std::nullopt));
    return ij.select(0, 0) * n + ij.select(0, 1);
  }
  Tensor into_square(const Tensor& t) const {  // [..., pairs] -> [..., n n]
    Shape shape(t.sizes().begin(), t.sizes().end());
    shape.back() = n * n;
    return at::zeros(shape, t.options().requires_grad(std::nullopt)).index_copy(-1, index(t.options()), t);
  }

  Tangent from_square(Tangent t) const {
    const Shape out{pairs()};
    t = view(std::move(t), {n * n});
    if (small(t)) {
      return map_axes(std::move(t), {0}, out, [this](const Tensor& rows, const Tensor&) {
        return rows.index_select(-1, index(rows.options()));
      });
    }
    Tangent y = zero_like(t, out);
    for (int64_t i = 0; i + 1 < n; ++i) {
      accumulate(y, put(take(t, row_in_square(i)), row_in_pairs(i), out), false);
    }
    return y;
  }
  Tangent to_square(const Tangent& y) const {
    const Shape flat{n * n};
    Tangent t = zero_like(y, flat);
    if (small(y)) {
      t = map_axes(y, {0}, flat, [this](const Tensor& rows, const Tensor&) { return into_square(rows); });
    } else {
      for (int64_t i = 0; i + 1 < n; ++i) {
        accumulate(t, put(take(y, row_in_pairs(i)), row_in_square(i), flat), false);
      }
    }
    return view(std::move(t), {1, n, n});
  }
};

void own_distances() {
  using N = gen::PdistBackward0;
  auto pairs = [](Local& l) { return Pairs{l, node<N>(l).p}; };
  auto triangle = [](const Local& l) { return Triangle{l.in_shape[0][0]}; };
  auto both = [](Local& l, const Tangents& dx) {
    const Tangent t = view(dx[0], {1, l.in_shape[0][0], l.in_shape[0][1]});
    return Tangents{t, t};
  };
  auto result = [](Local& l, Tangents dgx) -> Tangents {
    add_to(dgx[0], std::move(dgx[1]));
    return {view(std::move(dgx[0]), l.in_shape[0])};
  };
  Rule rule;
  rule.save = [](Local& l) {
    const Tensor x = l.unpack(node<N>(l).self_);
    save_pairs(l, (x.unsqueeze(1) - x.unsqueeze(0)).unsqueeze(0), node<N>(l).p);
  };
  rule.push = [=](Local& l, const Tangents& dx) -> Tangents {
    return {triangle(l).from_square(pairs(l).push(both(l, dx)))};
  };
  rule.pull = [=](Local& l, const Tangents& dgy) {
    return result(l, pairs(l).pull(triangle(l).to_square(dgy[0])));
  };
  rule.curve = [=](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) -> Tangents {
    if (!bends(node<N>(l).p) || l.saved[0].numel() == 0) return Tangents(1);
    const int64_t n = l.in_shape[0][0];
    const Tensor square = triangle(l).into_square(gy[0]).reshape({1, n, n});
    return result(l, pairs(l).curve(square, both(l, dx)));
  };
  add_rule("PdistBackward0", std::move(rule));
}

}  // namespace

void distances() {
  own_distances();
  cross_distances<gen::CdistBackward0>("CdistBackward0");
  cross_distances<gen::EuclideanDistBackward0>("EuclideanDistBackward0");
}

}  // namespace hesse::rules
