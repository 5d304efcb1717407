// Normalisation layers: h = (x - mean) r with r = 1 / sqrt(var + eps) over some axes, y = h w + b.
//
//     N(t) = r (t - mean(t) - h mean(h t)), self-adjoint, is the Jacobian of h
//     push   dy   = w N(dx) + h dw + db
//     pull   dgx  = N(w dgy),  dgw = h dgy,  dgb = dgy
//     curve  dgx  = N(gy dw) - r mean(h dx) gx - r mean(G h) dh - r h mean(G dh),  dgw = gy dh
//            with G = w gy, gx = N(G), dh = N(dx)
//
// In evaluation mode batch norm has constant statistics: N(t) = r t, and only the products with w bend.
#include "factors.h"

namespace hesse::rules {

namespace {

// x seen in a shape whose `axes` are normalised; w and b broadcast to it.
struct Layout {
  Shape x, w, axes, statistics;
  bool frozen = false;
  double count = 1;
};

// saved: h, r, w (undefined: 1); memo, once G is known: G, gx, mean(G h).
struct Layer {
  Local& l;
  Layout at;

  Tangent mean(Tangent t) const { return scale(expand(sum(std::move(t), at.axes, true), at.x), 1 / at.count); }
  Tensor mean(const Tensor& t) const { return t.mean(at.axes, true); }

  Tangent normalise(const Tangent& t) const {
    const Tensor &h = l.saved[0], &r = l.saved[1];
    if (at.frozen) return scale(t, r);
    Tangent n = t;
    accumulate(n, scale(mean(t), -1.0));
    accumulate(n, scale(scale(mean(scale(t, h)), h), -1.0));
    return scale(std::move(n), r);
  }
  Tangent weighted(Tangent t) const { return l.saved[2].defined() ? scale(std::move(t), l.saved[2]) : t; }
  Tangent parameter(const Tangent& t) const { return expand(view(t, at.w), at.x); }
  Tangent to_parameter(Tangent t, size_t i) const { return view(sum_to(std::move(t), at.w), l.in_shape[i]); }
};

Tangents push(const Layer& layer, const Tangents& dx) {
  Local& l = layer.l;
  Tangent dy;
  auto add = [&](Tangent t) {
    if (dy.K == 0) dy = zero_like(t, layer.at.x);
    accumulate(dy, std::move(t));
  };
  if (!dx[0].zero()) add(layer.weighted(layer.normalise(view(dx[0], layer.at.x))));
  if (dx.size() > 1 && !dx[1].zero()) add(scale(layer.parameter(dx[1]), l.saved[0]));
  if (dx.size() > 2 && !dx[2].zero()) add(layer.parameter(dx[2]));
  return {view(std::move(dy), l.out_shape[0])};
}

Tangents pull(const Layer& layer, const Tangents& dgy) {
  Local& l = layer.l;
  Tangents dgx(l.inputs());
  if (dgy[0].zero()) return dgx;
  const Tangent g = view(dgy[0], layer.at.x);
  if (l.wanted[0]) dgx[0] = view(layer.normalise(layer.weighted(g)), l.in_shape[0]);
  if (l.inputs() > 1 && l.wanted[1]) dgx[1] = layer.to_parameter(scale(g, l.saved[0]), 1);
  if (l.inputs() > 2 && l.wanted[2]) dgx[2] = layer.to_parameter(g, 2);
  return dgx;
}

Tangents curve(const Layer& layer, const Tensor& gy_any, const Tangents& dx) {
  Local& l = layer.l;
  Tangents dgx(l.inputs());
  if (!gy_any.defined()) return dgx;
  const Tensor &h = l.saved[0], &r = l.saved[1], &w = l.saved[2];
  const Tensor gy = gy_any.reshape(layer.at.x);
  const bool x_moves = !dx[0].zero(), w_moves = dx.size() > 1 && !dx[1].zero();
  Tangent dh;
  if (x_moves) dh = layer.normalise(view(dx[0], layer.at.x));
  if (l.wanted[0]) {
    Tangent g;
    auto add = [&](Tangent t) {
      if (g.K == 0) g = zero_like(t, layer.at.x);
      accumulate(g, std::move(t));
    };
    if (w_moves) add(layer.normalise(scale(layer.parameter(dx[1]), gy)));
    if (x_moves && !layer.at.frozen) {
      if (l.memo.empty()) {
        const Tensor G = w.defined() ? gy * w : gy;
        const Tensor c = layer.mean(G * h);
        const Tensor gx = r * (G - layer.mean(G) - h * c);
        l.memo = {G, r * gx, r * c, r * h};
      }
      add(scale(scale(layer.mean(scale(view(dx[0], layer.at.x), h)), l.memo[1]), -1.0));
      add(scale(scale(dh, l.memo[2]), -1.0));
      add(scale(scale(layer.mean(scale(dh, l.memo[0])), l.memo[3]), -1.0));
    }
    if (g.K > 0) dgx[0] = view(std::move(g), l.in_shape[0]);
  }
  if (l.inputs() > 1 && l.wanted[1] && x_moves) dgx[1] = layer.to_parameter(scale(dh, gy), 1);
  return dgx;
}

// layout(node, local) -> Layout; statistics(node, local, x) -> {mean, r} in the shape of the layout's statistics.
template <class N, class L, class S>
void normalisation(const char* name, L layout, S statistics) {
  auto layer = [layout](Local& l) { return Layer{l, layout(node<N>(l), l)}; };
  Rule rule;
  rule.save = [layout, statistics](Local& l) {
    auto& n = node<N>(l);
    const Layout at = layout(n, l);
    const Tensor x = l.unpack(n.input_).reshape(at.x), w = l.unpack(n.weight_);
    const auto [mean, r] = statistics(n, l, x, at);
    l.saved = {(x - mean) * r, r, w.defined() ? w.reshape(at.w) : Tensor()};
  };
  rule.push = [layer](Local& l, const Tangents& dx) { return push(layer(l), dx); };
  rule.pull = [layer](Local& l, const Tangents& dgy) { return pull(layer(l), dgy); };
  rule.curve = [layer](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) { return curve(layer(l), gy[0], dx); };
  add_rule(name, std::move(rule));
}

using Statistics = std::pair<Tensor, Tensor>;

// What the node saved; when the Hessian itself is to be differentiated they must follow x, so they are made again
// (autograd takes them for constants, which is wrong from the third derivative on). eps need not be known.
Statistics live(const Tensor& x, const Tensor& mean, const Tensor& r, const Layout& at) {
  const Tensor m = mean.reshape(at.statistics), s = r.reshape(at.statistics);
  if (!c10::GradMode::is_enabled()) return {m, s};
  const Tensor now = x.mean(at.axes, true), var = (x - now).square().mean(at.axes, true);
  const Tensor eps = (s.detach().pow(-2) - var.detach());
  return {now, (var + eps).rsqrt()};
}

}  // namespace

void norms() {
  normalisation<gen::NativeLayerNormBackward0>(
      "NativeLayerNormBackward0",
      [](auto& n, Local& l) {
        Layout at;
        at.x = at.statistics = l.out_shape[0];
        for (size_t i = 0; i < n.normalized_shape.size(); ++i) {
          const size_t a = at.x.size() - n.normalized_shape.size() + i;
          at.axes.push_back(static_cast<int64_t>(a));
          at.w.push_back(at.x[a]);
          at.count *= static_cast<double>(at.x[a]);
          at.statistics[a] = 1;
        }
        return at;
      },
      [](auto& n, Local& l, const Tensor& x, const Layout& at) {
        return live(x, l.unpack(n.result1_), l.unpack(n.result2_), at);
      });
  normalisation<gen::NativeGroupNormBackward0>(
      "NativeGroupNormBackward0",
      [](auto& n, Local&) {
        const int64_t per_group = n.C.expect_int() / n.group;
        Layout at;
        at.x = {n.N.expect_int(), n.group, per_group, n.HxW.expect_int()};
        at.w = {1, n.group, per_group, 1};
        at.axes = {2, 3};
        at.statistics = {at.x[0], n.group, 1, 1};
        at.count = static_cast<double>(per_group * at.x[3]);
        return at;
      },
      [](auto& n, Local& l, const Tensor& x, const Layout& at) {
        return live(x, l.unpack(n.result1_), l.unpack(n.result2_), at);
      });
  normalisation<gen::NativeBatchNormBackward0>(
      "NativeBatchNormBackward0",
      [](auto& n, Local& l) {
        Layout at;
        at.x = l.out_shape[0];
        at.w = Shape(at.x.size(), 1);
        at.w[1] = at.x[1];
        at.statistics = at.w;
        at.frozen = !n.training;
        for (size_t a = 0; a < at.x.size(); ++a) {
          if (a == 1) continue;
          at.axes.push_back(static_cast<int64_t>(a));
          at.count *= static_cast<double>(at.x[a]);
        }
        return at;
      },
      [](auto& n, Local& l, const Tensor& x, const Layout& at) {
        if (n.training) return live(x, l.unpack(n.result1_), l.unpack(n.result2_), at);
        const Tensor mean = l.unpack(n.running_mean_), var = l.unpack(n.running_var_);
        return Statistics{mean.to(x.scalar_type()).reshape(at.w), (var + n.eps).rsqrt().to(x.scalar_type()).reshape(at.w)};
      });
}

}  // namespace hesse::rules
