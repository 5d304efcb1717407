// Normalisation layers: h = (x - mean) r with r = 1 / sqrt(var + eps) over some axes, y = h w + b.
//
//     N(t) = r (t - mean(t) - h mean(h t)), self-adjoint, is the Jacobian of h
//     push   dy   = w N(dx) + h dw + db
//     pull   dgx  = N(w dgy),  dgw = h dgy,  dgb = dgy
//     curve  dgx  = N(gy dw) - r (c N(dx) + g mean(h dx) + h mean(g dx)),  dgw = gy N(dx)
//            with g = N(w gy), c = mean(h w gy)
//
// In evaluation mode the statistics of batch norm are constants: N(t) = r t, and only the products with w
// bend.
#include "reduction.h"

namespace hesse::rules {

namespace {

// How a layer sees x, w, and its statistics: in shapes that broadcast to each other.
struct Layout {
  Axes axes;  // of x
  Shape w;
  bool constant = false;  // the statistics
};

// A tangent of x with its means, of the kept shape.
struct Moved {
  Tangent t, mean, h_mean;  // t, mean(t), mean(h t)
};

// saved: h, r, w (undefined: 1); memo: g, r c, r g, r h.
struct Layer {
  Local& l;
  Layout at;

  Tensor mean(const Tensor& t) const { return t.mean(at.axes.gone, true); }
  Tangent mean(Tangent t) const {
    return scale(total(std::move(t), at.axes), 1.0 / static_cast<double>(at.axes.count));
  }
  Tangent wide(const Tangent& t) const { return spread(t, at.axes); }

  Moved moved(Tangent t) const {
    Moved m{std::move(t), {}, {}};
    if (at.constant) return m;
    m.mean = mean(m.t);
    m.h_mean = mean(scale(m.t, l.saved[0]));
    return m;
  }
  Tangent jacobian(const Moved& m) const {
    if (at.constant) return scale(m.t, l.saved[1]);
    return scale(minus(minus(m.t, wide(m.mean)), scale(wide(m.h_mean), l.saved[0])), l.saved[1]);
  }
  Tensor jacobian(const Tensor& t, const Tensor& h_mean) const {
    return l.saved[1] * (t - mean(t) - l.saved[0] * h_mean);
  }

  Tangent weighted(Tangent t) const { return l.saved[2].defined() ? scale(std::move(t), l.saved[2]) : t; }
  Tangent in(const Tangent& t) const { return cast(view(t, at.axes.in), dtype_of(l)); }
  Tangent parameter(const Tangent& t) const { return expand(cast(view(t, at.w), dtype_of(l)), at.axes.in); }
  Tangent out(Tangent t, size_t i) const { return view(std::move(t), l.in_shape[i]); }
  Tangent to_parameter(Tangent t, size_t i) const { return out(sum_to(std::move(t), at.w), i); }
};

void add(Tangent& sum, Tangent t) {
  if (sum.K == 0) {
    sum = std::move(t);
  } else {
    accumulate(sum, std::move(t));
  }
}

bool moves(const Tangents& dx, size_t i) { return i < dx.size() && !dx[i].zero(); }
bool wanted(const Local& l, size_t i) { return i < l.inputs() && l.wanted[i]; }

Tangents push(const Layer& layer, const Tangents& dx) {
  Local& l = layer.l;
  Tangents dy(1);
  if (moves(dx, 0)) {
    const Moved m = layer.moved(layer.in(dx[0]));
    dy[0] = layer.weighted(layer.jacobian(m));
    if (l.out_options.size() > 2 && l.out_options[2].has_dtype()) {  // the mean and r can be differentiated
      dy.push_back(view(m.mean, l.out_shape[1]));
      dy.push_back(view(scale(scale(m.h_mean, l.saved[1].square()), -1.0), l.out_shape[2]));
    }
  }
  if (moves(dx, 1)) add(dy[0], scale(layer.parameter(dx[1]), l.saved[0]));
  if (moves(dx, 2)) add(dy[0], layer.parameter(dx[2]));
  dy[0] = view(std::move(dy[0]), l.out_shape[0]);
  return dy;
}

Tangents pull(const Layer& layer, const Tangent& dgy) {
  Local& l = layer.l;
  Tangents dgx(l.inputs());
  const Tangent g = view(dgy, layer.at.axes.in);
  if (wanted(l, 0)) dgx[0] = layer.out(layer.jacobian(layer.moved(layer.weighted(g))), 0);
  if (wanted(l, 1)) dgx[1] = layer.to_parameter(scale(g, l.saved[0]), 1);
  if (wanted(l, 2)) dgx[2] = layer.to_parameter(g, 2);
  return dgx;
}

Tangents curve(const Layer& layer, const Tensor& gy, const Tangents& dx) {
  Local& l = layer.l;
  Tangents dgx(l.inputs());
  const Tensor &h = l.saved[0], &r = l.saved[1], &w = l.saved[2];
  const bool bow = !layer.at.constant && wanted(l, 0);
  if (moves(dx, 0) && (bow || wanted(l, 1))) {
    const Moved m = layer.moved(layer.in(dx[0]));
    const Tangent dh = layer.jacobian(m);
    if (wanted(l, 1)) dgx[1] = layer.to_parameter(scale(dh, gy), 1);
    if (bow) {
      if (l.memo.empty()) {
        const Tensor wg = w.defined() ? w * gy : gy, c = layer.mean(h * wg), g = layer.jacobian(wg, c);
        l.memo = {g, r * c, r * g, r * h};
      }
      Tangent t = scale(dh, l.memo[1]);
      accumulate(t, scale(layer.wide(m.h_mean), l.memo[2]));
      accumulate(t, scale(layer.wide(layer.mean(scale(m.t, l.memo[0]))), l.memo[3]));
      dgx[0] = scale(std::move(t), -1.0);
    }
  }
  if (moves(dx, 1) && wanted(l, 0)) {
    add(dgx[0], layer.jacobian(layer.moved(scale(layer.parameter(dx[1]), gy))));
  }
  if (dgx[0].K > 0) dgx[0] = layer.out(std::move(dgx[0]), 0);
  return dgx;
}

// layout(node, x's shape) -> Layout; statistics(node, local, x, layout) -> {mean, r}.
template <class N, class L, class S>
void normalisation(const char* name, L layout, S statistics) {
  auto layer = [layout](Local& l) { return Layer{l, layout(node<N>(l), l.out_shape[0])}; };
  Rule rule;
  // Statistics used as outputs in their own right are rare: the node itself is driven then.
  rule.covers = [](Local& l) { return std::find(l.used.begin() + 1, l.used.end(), true) == l.used.end(); };
  rule.save = [layout, statistics](Local& l) {
    auto& n = node<N>(l);
    const Layout at = layout(n, l.out_shape[0]);
    const Tensor x = l.unpack(n.input_).reshape(at.axes.in), w = l.unpack(n.weight_);
    const auto [mean, r] = statistics(n, l, x, at);
    l.saved = {(x - mean) * r, r, w.defined() ? w.reshape(at.w) : Tensor()};
  };
  rule.push = [layer](Local& l, const Tangents& dx) { return push(layer(l), dx); };
  rule.pull = [layer](Local& l, const Tangents& dgy) { return pull(layer(l), dgy[0]); };
  rule.curve = [layer](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
    const Layer seen = layer(l);
    return curve(seen, gy[0].reshape(seen.at.axes.in), dx);
  };
  add_rule(name, std::move(rule));
}

using MeanAndScale = std::pair<Tensor, Tensor>;

// What the node saved. When the Hessian itself is to be differentiated they must follow x, so they are made
// again: autograd takes what it saved for constants, which is wrong from the third derivative on. eps need
// not be known.
MeanAndScale live(const Tensor& x, const Tensor& mean, const Tensor& r, const Layout& at) {
  const Tensor saved_r = r.detach().reshape(at.axes.kept);
  if (!c10::GradMode::is_enabled()) return {mean.reshape(at.axes.kept), saved_r};
  const Tensor m = x.mean(at.axes.gone, true), var = (x - m).square().mean(at.axes.gone, true);
  return {m, saved_r * ((var - var.detach()) * saved_r.square() + 1).rsqrt()};
}

template <class N>
void batch_norm(const char* name) {
  const auto training = [](auto& n) {
    if constexpr (requires { n.training; }) {
      return n.training;
    } else {
      return false;
    }
  };
  normalisation<N>(
      name,
      [training](auto& n, const Shape& x) {
        Shape seen{x[0], x[1], numel_of(x) / std::max<int64_t>(1, x[0] * x[1])};
        return Layout{axes_of(seen, {0, 2}), {1, x[1], 1}, !training(n)};
      },
      [training](auto& n, Local& l, const Tensor& x, const Layout& at) -> MeanAndScale {
        if (training(n)) return live(x, l.unpack(n.result1_), l.unpack(n.result2_), at);
        if constexpr (requires { n.running_mean_; }) {
          return {l.unpack(n.running_mean_).reshape(at.w),
                  (l.unpack(n.running_var_).reshape(at.w) + n.eps).rsqrt()};
        } else {
          return live(x, l.unpack(n.result1_), l.unpack(n.result2_), at);
        }
      });
}

}  // namespace

void norms() {
  normalisation<gen::NativeLayerNormBackward0>(
      "NativeLayerNormBackward0",
      [](auto& n, const Shape& x) {
        Layout at;
        Shape last;
        for (size_t a = x.size() - n.normalized_shape.size(); a < x.size(); ++a) {
          last.push_back(static_cast<int64_t>(a));
          at.w.push_back(x[a]);
        }
        at.axes = axes_of(x, last);
        return at;
      },
      [](auto& n, Local& l, const Tensor& x, const Layout& at) {
        return live(x, l.unpack(n.result1_), l.unpack(n.result2_), at);
      });
  normalisation<gen::NativeGroupNormBackward0>(
      "NativeGroupNormBackward0",
      [](auto& n, const Shape&) {
        const int64_t per_group = n.C.expect_int() / n.group;
        const Shape seen{n.N.expect_int(), n.group, per_group, n.HxW.expect_int()};
        return Layout{axes_of(seen, {2, 3}), {1, n.group, per_group, 1}};
      },
      [](auto& n, Local& l, const Tensor& x, const Layout& at) {
        return live(x, l.unpack(n.result1_), l.unpack(n.result2_), at);
      });
  batch_norm<gen::NativeBatchNormBackward0>("NativeBatchNormBackward0");
  batch_norm<gen::NativeBatchNormLegitBackward0>("NativeBatchNormLegitBackward0");
  batch_norm<gen::NativeBatchNormLegitBackward1>("NativeBatchNormLegitBackward1");
  batch_norm<gen::NativeBatchNormLegitNoTrainingBackward0>("NativeBatchNormLegitNoTrainingBackward0");
}

}  // namespace hesse::rules
