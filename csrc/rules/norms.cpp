// Normalisation layers: h = (x - mean) r with r = 1 / sqrt(var + eps) over some axes, y = h w + b.
//
//     N(t) = r (t - mean(t) - h mean(h t)), self-adjoint, is the Jacobian of h
//     push   dy   = w N(dx) + h dw + db
//     pull   dgx  = N(w dgy),  dgw = h dgy,  dgb = dgy
//     curve  dgx  = N(gy dw) - r (c N(dx) + g mean(h dx) + h mean(g dx)),  dgw = gy N(dx)
//            with g = N(w gy), c = mean(h w gy)
//
// Some hand out their statistics, over n elements each, as outputs that may be used:
//
//     push   dmean = mean(dx),  dr = -r^2 mean(h dx)
//     pull   dgx   = dgmean / n - r^2 h dgr / n
//     curve  dgx   = -gr / n (r^2 N(dx) - 2 r^3 h mean(h dx))
//
// In evaluation mode the statistics of batch norm are constants: N(t) = r t, and only the products with w
// bend. Where a layer only divides by the root of the mean square, all this holds with 0 for mean(t).
#include "reduction.h"

namespace hesse::rules {

namespace {

// How a layer sees x, w, and its statistics: in shapes that broadcast to each other.
struct Layout {
  Axes axes;  // of x
  Shape w;
  bool constant = false;  // the statistics
  bool centred = true;    // the mean is taken off
};

// A tangent of x with its means, of the kept shape.
struct Moved {
  Tangent t, mean, h_mean;  // t, mean(t), mean(h t)
};

// saved: h, r, w (undefined: 1); bent: g, r c, r g, r h.
struct Layer {
  Local& l;
  Layout at;

  Tensor mean(const Tensor& t) const { return t.mean(at.axes.gone, true); }
  Tangent mean(Tangent t) const { return scale(total(std::move(t), at.axes), each()); }
  Tangent wide(const Tangent& t) const { return spread(t, at.axes); }

  Moved moved(Tangent t) const {
    Moved m{std::move(t), {}, {}};
    if (at.constant) return m;
    if (at.centred) m.mean = mean(m.t);
    m.h_mean = mean(scale(m.t, l.saved[0]));
    return m;
  }
  Tangent jacobian(const Moved& m) const {
    if (at.constant) return scale(m.t, l.saved[1]);
    const Tangent t = at.centred ? minus(m.t, wide(m.mean)) : m.t;
    return scale(minus(t, scale(wide(m.h_mean), l.saved[0])), l.saved[1]);
  }
  Tensor jacobian(const Tensor& t, const Tensor& h_mean) const {
    return l.saved[1] * ((at.centred ? t - mean(t) : t) - l.saved[0] * h_mean);
  }
  // The mean and r are outputs that something reads.
  bool used(size_t o) const { return o < l.used.size() && l.used[o]; }
  double each() const { return 1.0 / static_cast<double>(at.axes.count); }

  Tangent weighted(Tangent t) const { return l.saved[2].defined() ? scale(std::move(t), l.saved[2]) : t; }
  Tangent in(const Tangent& t) const { return cast(view(t, at.axes.in), dtype_of(l)); }
  Tangent parameter(const Tangent& t) const { return expand(cast(view(t, at.w), dtype_of(l)), at.axes.in); }
  Tangent out(Tangent t, size_t i) const { return view(std::move(t), l.in_shape[i]); }
  Tangent to_parameter(Tangent t, size_t i) const { return out(sum_to(std::move(t), at.w), i); }
};

bool moves(const Tangents& dx, size_t i) { return i < dx.size() && !dx[i].zero(); }
bool wanted(const Local& l, size_t i) { return i < l.inputs() && l.wanted[i]; }

Tangents push(const Layer& layer, const Tangents& dx) {
  Local& l = layer.l;
  Tangents dy(l.out_shape.size());
  if (moves(dx, 0)) {
    const Moved m = layer.moved(layer.in(dx[0]));
    dy[0] = layer.weighted(layer.jacobian(m));
    if (layer.used(1)) dy[1] = view(m.mean, l.out_shape[1]);
    if (layer.used(2)) dy[2] = view(scale(scale(m.h_mean, l.saved[1].square()), -1.0), l.out_shape[2]);
  }
  if (moves(dx, 1)) add_to(dy[0], scale(layer.parameter(dx[1]), l.saved[0]));
  if (moves(dx, 2)) add_to(dy[0], layer.parameter(dx[2]));
  dy[0] = view(std::move(dy[0]), l.out_shape[0]);
  return dy;
}

Tangents pull(const Layer& layer, const Tangents& dgy) {
  Local& l = layer.l;
  const Tensor &h = l.saved[0], &r = l.saved[1];
  Tangents dgx(l.inputs());
  if (!dgy[0].zero()) {
    const Tangent g = view(dgy[0], layer.at.axes.in);
    if (wanted(l, 0)) dgx[0] = layer.jacobian(layer.moved(layer.weighted(g)));
    if (wanted(l, 1)) dgx[1] = layer.to_parameter(scale(g, h), 1);
    if (wanted(l, 2)) dgx[2] = layer.to_parameter(g, 2);
  }
  if (wanted(l, 0) && layer.used(1) && !dgy[1].zero()) {
    add_to(dgx[0], scale(layer.wide(dgy[1]), layer.each()));
  }
  if (wanted(l, 0) && layer.used(2) && !dgy[2].zero()) {
    add_to(dgx[0], scale(scale(layer.wide(dgy[2]), r.square() * h), -layer.each()));
  }
  if (dgx[0].K > 0) dgx[0] = layer.out(std::move(dgx[0]), 0);
  return dgx;
}

Tangents curve(const Layer& layer, const std::vector<Tensor>& gys, const Tangents& dx) {
  Local& l = layer.l;
  Tangents dgx(l.inputs());
  const Tensor &h = l.saved[0], &r = l.saved[1], &w = l.saved[2];
  const Tensor gy = gys[0].defined() ? gys[0].reshape(layer.at.axes.in) : Tensor();
  const Tensor gr = layer.used(2) && gys[2].defined() ? gys[2].reshape(layer.at.axes.kept) : Tensor();
  const bool bow = !layer.at.constant && wanted(l, 0);
  if (moves(dx, 0) && (bow || wanted(l, 1))) {
    const Moved m = layer.moved(layer.in(dx[0]));
    const Tangent dh = layer.jacobian(m);
    if (gy.defined() && wanted(l, 1)) dgx[1] = layer.to_parameter(scale(dh, gy), 1);
    if (bow && gy.defined()) {
      if (l.bent.empty()) {
        const Tensor wg = w.defined() ? w * gy : gy, c = layer.mean(h * wg), g = layer.jacobian(wg, c);
        l.bent = {g, r * c, r * g, r * h};
      }
      Tangent t = scale(dh, l.bent[1]);
      accumulate(t, scale(layer.wide(m.h_mean), l.bent[2]));
      accumulate(t, scale(layer.wide(layer.mean(scale(m.t, l.bent[0]))), l.bent[3]));
      dgx[0] = scale(std::move(t), -1.0);
    }
    if (bow && gr.defined()) {
      const Tensor each = gr * r.square() * layer.each();
      add_to(dgx[0], scale(scale(dh, each), -1.0));
      add_to(dgx[0], scale(scale(layer.wide(m.h_mean), each * r * h), 2.0));
    }
  }
  if (moves(dx, 1) && gy.defined() && wanted(l, 0)) {
    add_to(dgx[0], layer.jacobian(layer.moved(scale(layer.parameter(dx[1]), gy))));
  }
  if (dgx[0].K > 0) dgx[0] = layer.out(std::move(dgx[0]), 0);
  return dgx;
}

// layout(node, x's shape) -> Layout; statistics(node, local, x, layout) -> {mean, r}; undefined: no mean.
template <class N, class L, class S>
void normalisation(const char* name, L layout, S statistics, Rule::Covers covers = {}) {
  auto layer = [layout](Local& l) { return Layer{l, layout(node<N>(l), l.out_shape[0])}; };
  Rule rule;
  rule.covers = std::move(covers);
  rule.save = [layout, statistics](Local& l) {
    auto& n = node<N>(l);
    const Layout at = layout(n, l.out_shape[0]);
    const Tensor x = l.unpack(n.input_).reshape(at.axes.in), w = l.unpack(n.weight_);
    const auto [mean, r] = statistics(n, l, x, at);
    l.saved = {(mean.defined() ? x - mean : x) * r, r, w.defined() ? w.reshape(at.w) : Tensor()};
  };
  rule.push = [layer](Local& l, const Tangents& dx) { return push(layer(l), dx); };
  rule.pull = [layer](Local& l, const Tangents& dgy) { return pull(layer(l), dgy); };
  rule.curve = [layer](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
    return curve(layer(l), gy, dx);
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
double eps_of(const N& n) {
  if constexpr (requires { n.epsilon; }) {
    return n.epsilon;
  } else {
    return n.eps;
  }
}

template <class N>
void batch_norm(const char* name) {
  const auto training = [](auto& n) {
    if constexpr (requires { n.training; }) {
      return n.training;
    } else {
      return std::is_same_v<N, gen::BatchNormWithUpdateBackward0>;
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
                  (l.unpack(n.running_var_).reshape(at.w) + eps_of(n)).rsqrt()};
        } else {
          return live(x, l.unpack(n.result1_), l.unpack(n.result2_), at);
        }
      });
}

// w = g u with u = v / |v| over all axes but one.
//
//     push   du = (dv - u <u, dv>) / |v|,  dw = g du + u dg
//     pull   dgv = g / |v| (t - u <u, t>),  dgg = <u, t>                       with t = dgw
//     curve  dgv = (dg - g <u, dv> / |v|) p - g / |v| (<u, t> du + u <t, du>),  dgg = <t, du>
//            with t = gw, p = (t - u <u, t>) / |v|
void weight_norm() {
  using N = gen::WeightNormInterfaceBackward0;
  auto axes = [](Local& l) {
    const int64_t rank = static_cast<int64_t>(l.out_shape[0].size()), kept = node<N>(l).dim;
    Shape gone;
    for (int64_t a = 0; a < rank; ++a) {
      if (a != (kept < 0 ? kept + rank : kept)) gone.push_back(a);
    }
    return axes_of(l.out_shape[0], gone);
  };
  // (t - u <u, t>) / |v|, the Jacobian of u, which is symmetric.
  auto jacobian = [](Local& l, const Axes& a, const Tangent& t) {
    const Tensor &u = l.saved[0], &inverse = l.saved[2];
    return scale(minus(t, scale(spread(total(scale(t, u), a), a), u)), inverse);
  };
  auto met = [](const Axes& a, const Tangent& t, const Tensor& by) { return total(scale(t, by), a); };
  Rule rule;
  rule.covers = [](Local& l) { return l.out_shape[0].size() > 1; };
  rule.save = [axes](Local& l) {
    auto& n = node<N>(l);
    const Axes a = axes(l);
    const Tensor v = l.unpack(n.v_), g = l.unpack(n.g_).reshape(a.kept);
    // What the node saved of |v| is a constant to autograd.
    const Tensor norm = c10::GradMode::is_enabled()
                            ? v.square().sum(a.gone, true).sqrt()
                            : l.unpack(n.result1_).reshape(a.kept).to(v.scalar_type());
    l.saved = {v / norm, g, norm.reciprocal()};
  };
  rule.push = [=](Local& l, const Tangents& dx) -> Tangents {
    const Axes a = axes(l);
    Tangents dy(l.out_shape.size());
    if (moves(dx, 0)) dy[0] = scale(jacobian(l, a, dx[0]), l.saved[1]);
    if (moves(dx, 1)) add_to(dy[0], scale(spread(dx[1], a), l.saved[0]));
    return dy;
  };
  rule.pull = [=](Local& l, const Tangents& dgy) {
    const Axes a = axes(l);
    Tangents dgx(2);
    if (l.wanted[0]) dgx[0] = scale(jacobian(l, a, dgy[0]), l.saved[1]);
    if (l.wanted[1]) dgx[1] = view(met(a, dgy[0], l.saved[0]), l.in_shape[1]);
    return dgx;
  };
  rule.curve = [=](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
    Tangents dgx(2);
    if (!gy[0].defined()) return dgx;
    const Axes a = axes(l);
    const Tensor &u = l.saved[0], &g = l.saved[1], &inverse = l.saved[2], &t = gy[0];
    if (l.bent.empty()) {
      const Tensor along = (u * t).sum(a.gone, true), p = (t - u * along) * inverse;
      l.bent = {p, p * g * inverse, along * g * inverse, u * g * inverse};
    }
    if (moves(dx, 0)) {
      const Tangent du = jacobian(l, a, dx[0]), t_du = met(a, du, t);
      if (l.wanted[0]) {
        Tangent sum = scale(spread(met(a, dx[0], u), a), l.bent[1]);
        accumulate(sum, scale(du, l.bent[2]));
        accumulate(sum, scale(spread(t_du, a), l.bent[3]));
        dgx[0] = scale(std::move(sum), -1.0);
      }
      if (l.wanted[1]) dgx[1] = view(t_du, l.in_shape[1]);
    }
    if (moves(dx, 1) && l.wanted[0]) add_to(dgx[0], scale(spread(dx[1], a), l.bent[0]));
    return dgx;
  };
  add_rule("WeightNormInterfaceBackward0", std::move(rule));
}

}  // namespace

void norms() {
  const auto last_axes = [](auto& n, const Shape& x) {
    Layout at;
    Shape last;
    for (size_t a = x.size() - n.normalized_shape.size(); a < x.size(); ++a) {
      last.push_back(static_cast<int64_t>(a));
      at.w.push_back(x[a]);
    }
    at.axes = axes_of(x, last);
    return at;
  };
  normalisation<gen::NativeLayerNormBackward0>(
      "NativeLayerNormBackward0", last_axes, [](auto& n, Local& l, const Tensor& x, const Layout& at) {
        return live(x, l.unpack(n.result1_), l.unpack(n.result2_), at);
      });
  normalisation<gen::FusedRmsNormBackward0>(
      "FusedRmsNormBackward0",
      [last_axes](auto& n, const Shape& x) {
        Layout at = last_axes(n, x);
        at.centred = false;
        return at;
      },
      [](auto& n, Local& l, const Tensor& x, const Layout& at) -> MeanAndScale {
        const Tensor r = l.unpack(n.result1_).detach().reshape(at.axes.kept);
        if (!c10::GradMode::is_enabled()) return {Tensor(), r};
        const Tensor square = x.square().mean(at.axes.gone, true);
        return {Tensor(), r * ((square - square.detach()) * r.square() + 1).rsqrt()};
      },
      [](Local& l) { return l.used.size() < 2 || !l.used[1]; });  // r itself is asked for
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
  batch_norm<gen::BatchNormWithUpdateBackward0>("BatchNormWithUpdateBackward0");
  batch_norm<gen::CudnnBatchNormBackward0>("CudnnBatchNormBackward0");
  batch_norm<gen::MiopenBatchNormBackward0>("MiopenBatchNormBackward0");
  weight_norm();
}

}  // namespace hesse::rules
