// Products of reflectors H_i = 1 - t_i v_i v_i', where v_i is column i of a matrix below its diagonal, and 1
// on it: applied one by one to W, the identity or a matrix given.
//
//     W' = H W     dW' = H dW - t (dv (v' W) + v (dv' W)) - dt v (v' W)
//                  gW = H gW',  gt = -<v' W, v' gW'>,  gv = -t (gW' (v' W)' + W (v' gW')')
#include "matrices.h"

namespace hesse::rules {

namespace {

// Column i of the vectors, as [B, m, 1]; its transpose puts a column back where it came from.
struct Columns {
  int64_t m, n;  // of the matrix that holds them

  Geometry at(int64_t b, int64_t i) const { return {{b, m, 1}, {m * n, n, n}, i}; }
  Tensor below(const at::TensorOptions& options, int64_t i) const {
    return at::ones({1, m, 1}, options.requires_grad(std::nullopt)).tril(-1 - i);
  }
  Dual vector(const Dual& a, int64_t i) const {
    Dual v;
    const Tensor below_i = below(a.v.options(), i);
    v.v = a.v.narrow(2, i, 1) * below_i + (below_i.new_ones({1, m, 1}).tril(-i) - below_i);
    if (a.moves()) v.t = scale(take(a.t, at(a.t.shape[0], i)), below_i);
    return v;
  }
  Dual back(const Dual& gv, int64_t i) const {
    Dual a;
    if (gv.moves()) {
      const int64_t b = gv.t.shape[0];
      a.t = put(scale(gv.t, below(gv.t.options, i)), at(b, i), {b, m, n});
    }
    return a;
  }
};

struct Reflections {
  Columns columns;
  Dual vectors, scales;  // [B, m, n], [B, k, 1]
  bool last_first;       // the order of application

  int64_t count() const { return scales.v.size(1); }
  int64_t index(int64_t step) const { return last_first ? count() - 1 - step : step; }
  Dual factor(int64_t i) const {
    Dual t;
    t.v = scales.v.narrow(1, i, 1);
    if (scales.moves()) {
      const int64_t b = scales.t.shape[0];
      t.t = take(scales.t, {{b, 1, 1}, {count(), 1, 1}, i});
    }
    return t;
  }
  static Dual reflected(const Dual& v, const Dual& t, const Dual& w) {
    return w - times(t, v * (transposed(v) * w));
  }
  // What was there before each step, and after the last.
  Duals all(Dual w) const {
    Duals states{std::move(w)};
    for (int64_t step = 0; step < count(); ++step) {
      const int64_t i = index(step);
      states.push_back(reflected(columns.vector(vectors, i), factor(i), states.back()));
    }
    return states;
  }
  // {to the vectors, to the scales, to W}
  Duals back(const Duals& states, Dual g) const {
    Dual to_vectors, to_scales;
    for (int64_t step = count(); step-- > 0;) {
      const int64_t i = index(step);
      const Dual v = columns.vector(vectors, i), t = factor(i), &w = states[step];
      const Dual wv = transposed(w) * v, gv = transposed(g) * v;  // [B, columns of W, 1]
      to_vectors = to_vectors - columns.back(times(t, g * wv + w * gv), i);
      const Dual gt = whole_sum(times(wv, gv));
      if (gt.moves()) {
        const int64_t b = gt.t.shape[0];
        to_scales = to_scales - Dual({}, put(gt.t, {{b, 1, 1}, {count(), 1, 1}, i}, {b, count(), 1}));
      }
      g = reflected(v, t, g);
    }
    return {to_vectors, to_scales, g};
  }
};

Reflections reflections(const Dual& vectors, const Dual& scales, bool last_first) {
  return {{vectors.v.size(1), vectors.v.size(2)}, vectors, scales, last_first};
}

// H_1 ... H_k, as many columns as the vectors have.
void householder_product() {
  using N = gen::LinalgHouseholderProductBackward0;
  auto of = [](const Dual& vectors, const Dual& scales) { return reflections(vectors, scales, true); };
  auto start = [](const Tensor& a) { return Dual(identity(a).expand(a.sizes())); };
  add_rule("LinalgHouseholderProductBackward0",
           matrix_rule<N>(
               [](N& n, Local& l) -> std::vector<Tensor> {
                 const Tensor a = l.unpack(n.input_);
                 l.batch = batch_of(a.sizes(), 2);
                 return {stacked(l, a), stacked_column(l, l.unpack(n.tau_))};
               },
               [=](N&, Local& l, const Tangents& dx, bool) -> Duals {
                 Duals states = of({l.saved[0], dx[0]}, {l.saved[1], dx[1]}).all(start(l.saved[0]));
                 Duals seen{states.back(), {l.saved[0], dx[0]}, {l.saved[1], dx[1]}};
                 seen.insert(seen.end(), states.begin(), states.end());
                 return seen;
               },
               [=](N&, Local&, const Duals& seen, const Duals& gy) -> Duals {
                 const Duals states(seen.begin() + 3, seen.end());
                 const Duals g = of(seen[1], seen[2]).back(states, gy[0]);
                 return {g[0], g[1]};
               },
               [](const Local&, size_t i) { return i == 1 ? Form::column : Form::matrix; }));
}

// The product, or its transpose, applied to a matrix from either side: C Q = (Q' C')'.
void apply_reflectors() {
  using N = gen::OrmqrBackward0;
  auto of = [](const N& n, const Dual& vectors, const Dual& scales) {
    return reflections(vectors, scales, n.left != n.transpose);
  };
  auto turned = [](const N& n, const Dual& c) { return n.left ? c : transposed(c); };
  add_rule("OrmqrBackward0",
           matrix_rule<N>(
               [](N& n, Local& l) -> std::vector<Tensor> {
                 const Tensor a = l.unpack(n.self_);
                 l.batch = batch_of(a.sizes(), 2);
                 return {stacked(l, a), stacked_column(l, l.unpack(n.input2_)),
                         stacked(l, l.unpack(n.input3_))};
               },
               [=](N& n, Local& l, const Tangents& dx, bool) -> Duals {
                 const Dual vectors(l.saved[0], dx[0]), scales(l.saved[1], dx[1]), c(l.saved[2], dx[2]);
                 Duals states = of(n, vectors, scales).all(turned(n, c));
                 Duals seen{turned(n, states.back()), vectors, scales};
                 seen.insert(seen.end(), states.begin(), states.end());
                 return seen;
               },
               [=](N& n, Local&, const Duals& seen, const Duals& gy) -> Duals {
                 const Duals states(seen.begin() + 3, seen.end());
                 const Duals g = of(n, seen[1], seen[2]).back(states, turned(n, gy[0]));
                 return {g[0], g[1], turned(n, g[2])};
               },
               [](const Local&, size_t i) { return i == 1 ? Form::column : Form::matrix; }));
}

}  // namespace

void reflectors() {
  householder_product();
  apply_reflectors();
}

}  // namespace hesse::rules
