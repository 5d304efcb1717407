// Losses. Those of a prediction x and a target t are an elementwise function, then a reduction (0 none, 1
// mean, 2 sum): a row gives the partials. Those that classify, x [N, C] or [C], weigh the scores of a sample;
// of them only the margin's may bend.
#include "reduction.h"

namespace hesse::rules {

namespace {

double share(int64_t reduction, int64_t numel) {
  return reduction == 1 ? 1.0 / static_cast<double>(numel) : 1.0;
}

// The elementwise part lives in l.inner, whose one output has the shape that x and t broadcast to, which is
// that of df/dx.
template <class N, class First, class Second>
void loss(const char* name, First first, Second second) {
  auto factor = [](Local& l) { return share(node<N>(l).reduction, numel_of(l.inner->out_shape[0])); };
  auto reduced = [](Local& l) { return node<N>(l).reduction != 0; };
  Rule rule;
  rule.save = [first](Local& l) {
    auto& n = node<N>(l);
    l.inner = std::make_shared<Local>(l);
    l.inner->first.assign(l.inputs(), Factor(0.0));
    first(n, *l.inner);
    const auto shape = l.inner->first[0].c.sizes();
    l.inner->out_shape = {Shape(shape.begin(), shape.end())};
  };
  rule.push = [factor, reduced](Local& l, const Tangents& dx) -> Tangents {
    Tangent dy = elementwise_push(*l.inner, dx)[0];
    if (!reduced(l)) return {std::move(dy)};
    return {scale(sum_to(std::move(dy), l.out_shape[0]), factor(l))};
  };
  rule.pull = [factor](Local& l, const Tangents& dgy) {
    l.inner->wanted = l.wanted;
    return elementwise_pull(*l.inner, {scale(expand(dgy[0], l.inner->out_shape[0]), factor(l))});
  };
  rule.curve = [factor, second](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
    Local& inner = *l.inner;
    inner.wanted = l.wanted;
    if (inner.second.empty()) {
      inner.second.assign(l.inputs() * l.inputs(), Factor(0.0));
      second(node<N>(l), inner);
    }
    if (l.bent.empty()) l.bent = {factor(l) == 1.0 ? gy[0] : gy[0] * factor(l)};
    return elementwise_curve(inner, {l.bent[0].expand(inner.out_shape[0])}, dx);
  };
  add_rule(name, std::move(rule));
}

// A function of x - t alone: slope(node, z) -> f'(z), bow(node, z) -> f''(z).
template <class N, class Slope, class Bow>
void difference(const char* name, Slope slope, Bow bow) {
  loss<N>(
      name,
      [slope](auto& n, Local& l) {
        l.saved = {l.unpack(n.self_) - l.unpack(n.target_)};
        l.first[0] = slope(n, l.saved[0]);
        l.first[1] = l.first[0];
        l.first[1].alpha *= -1;
      },
      [bow](auto& n, Local& l) {
        l.second[0] = l.second[3] = bow(n, l.saved[0]);
        l.second[1] = l.second[2] = l.second[0];
        l.second[1].alpha *= -1;
        l.second[2].alpha *= -1;
      });
}

// The scores of x that meet in one output, where classes are axis `c`.
template <class N>
Axes scores(Local& l, int64_t c) {
  const Shape& in = l.in_shape[0];
  return axes_of(in, node<N>(l).reduction != 0 || in.size() < 2 ? Shape{} : Shape{c});
}

// Piecewise linear in x: the weights are what the backward makes of ones.
template <class N, class Backward>
void weighing(const char* name, Backward backward) {
  auto axes = [](Local& l) { return scores<N>(l, 1); };
  Rule rule;
  rule.save = [backward](Local& l) {
    auto& n = node<N>(l);
    const Tensor x = l.unpack(n.self_).detach().contiguous();
    l.first = {selecting(backward(l, n, at::ones(l.out_shape[0], x.options()), x))};
  };
  rule.push = [axes](Local& l, const Tangents& dx) { return reduction_push(l, axes(l), dx); };
  rule.pull = [axes](Local& l, const Tangents& dgy) { return reduction_pull(l, axes(l), dgy); };
  add_rule(name, std::move(rule));
}

template <class N, class Backward>
void nll(const char* name, Backward backward) {
  weighing<N>(name, [backward](Local& l, N& n, const Tensor& g, const Tensor& x) {
    const Tensor weight = l.unpack(n.weight_);
    return backward(g, x, l.unpack(n.target_), weight.defined() ? std::make_optional(weight) : std::nullopt,
                    n.reduction, n.ignore_index.expect_int(), l.unpack(n.total_weight_));
  });
}

// f = w_y / C sum_j max(0, z_j)^p over the classes j other than the target y, z_j = margin - x_y + x_j. With
// d_j = dx_j - dx_y, f' d and f'' d d are sums over j. saved: where j = y (0, 1), z, w_y share / C, z > 0
void multi_margin() {
  using N = gen::MultiMarginLossBackward0;
  auto classes = [](Local& l) {
    const Shape& in = l.in_shape[0];
    return axes_of(in, in.size() < 2 ? Shape{} : Shape{1});
  };
  // x_j - x_y along the classes, and the transpose.
  auto against = [classes](Local& l, const Tangent& t) {
    return minus(t, spread(total(scale(t, l.saved[0]), classes(l)), classes(l)));
  };
  auto against_transposed = [classes](Local& l, const Tangent& t) {
    return minus(t, scale(spread(total(t, classes(l)), classes(l)), l.saved[0]));
  };
  Rule rule;
  rule.save = [classes](Local& l) {
    auto& n = node<N>(l);
    const Tensor x = l.unpack(n.self_), target = l.unpack(n.target_), weight = l.unpack(n.weight_);
    const Axes c = classes(l);
    const Tensor y = target.reshape(c.kept);
    const Shape last(std::min<size_t>(1, c.in.size()), c.count);
    const Tensor own = indicator(l, at::arange(c.count, y.options()).reshape(last).eq(y));
    const Tensor z = n.margin.toDouble() + x - (x * own).sum(c.gone, true);
    const double each =
        share(n.reduction, numel_of(c.kept)) / static_cast<double>(std::max<int64_t>(1, c.count));
    const Tensor w = weight.defined() ? weight.index_select(0, y.flatten()).reshape(c.kept) * each
                                      : at::full({}, each, x.options());
    l.saved = {own, z, w, indicator(l, z.gt(0)) * at::rsub(own, 1)};
    const Tensor slope = l.saved[3] * w * (n.p.toDouble() == 1.0 ? at::ones({}, x.options()) : 2 * z);
    l.first = {Factor(slope - own * slope.sum(c.gone, true))};
  };
  rule.push = [](Local& l, const Tangents& dx) { return reduction_push(l, scores<N>(l, 1), dx); };
  rule.pull = [](Local& l, const Tangents& dgy) { return reduction_pull(l, scores<N>(l, 1), dgy); };
  rule.curve = [=](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) -> Tangents {
    if (!gy[0].defined() || node<N>(l).p.toDouble() == 1.0) return Tangents(1);
    if (l.bent.empty()) l.bent = {2 * l.saved[3] * l.saved[2] * gy[0].reshape(scores<N>(l, 1).kept)};
    return {against_transposed(l, scale(against(l, dx[0]), l.bent[0]))};
  };
  add_rule("MultiMarginLossBackward0", std::move(rule));
}

}  // namespace

void losses() {
  // ---- of x - t ---------------------------------------------------------------------------------------
  difference<gen::MseLossBackward0>(
      "MseLossBackward0", [](auto&, const Tensor& z) { return times(2, z); },
      [](auto&, const Tensor&) { return Factor(2.0); });
  difference<gen::SmoothL1LossBackward0>(
      "SmoothL1LossBackward0",
      [](auto& n, const Tensor& z) -> Factor { return n.beta == 0 ? z.sgn() : (z / n.beta).clamp(-1, 1); },
      [](auto& n, const Tensor& z) -> Factor {
        return n.beta == 0 ? Factor(0.0) : times(1 / n.beta, (z.abs() < n.beta).to(z.scalar_type()));
      });
  difference<gen::HuberLossBackward0>(
      "HuberLossBackward0", [](auto& n, const Tensor& z) -> Factor { return z.clamp(-n.delta, n.delta); },
      [](auto& n, const Tensor& z) -> Factor { return (z.abs() < n.delta).to(z.scalar_type()); });

  // ---- binary cross entropy ---------------------------------------------------------------------------
  // f = -w (t log x + (1 - t) log(1 - x)), the denominators x (1 - x) bounded below as PyTorch's are.
  const auto weighted = [](const Tensor& t, const Tensor& w) { return w.defined() ? t * w : t; };
  loss<gen::BinaryCrossEntropyBackward0>(
      "BinaryCrossEntropyBackward0",
      [weighted](auto& n, Local& l) {
        const Tensor x = l.unpack(n.self_), t = l.unpack(n.target_), w = l.unpack(n.weight_);
        const Tensor room = (at::rsub(x, 1) * x).clamp_min(1e-12);
        l.saved = {x, t, room, w};
        l.first[0] = weighted((x - t) / room, w);
        if (l.active[1]) l.first[1] = weighted(at::rsub(x, 1).log() - x.log(), w);
      },
      [weighted](auto&, Local& l) {
        const Tensor &x = l.saved[0], &t = l.saved[1], &room = l.saved[2], &w = l.saved[3];
        const Tensor wide = (x + 1e-12) * (at::rsub(x, 1) + 1e-12);
        l.second[0] = weighted((x * x - 2 * x * t + t) / (wide * wide), w);
        if (l.active[1]) l.second[1] = l.second[2] = weighted(room.reciprocal().neg(), w);
      });
  // f = w ((1 - t) x + c softplus(-x)), c = 1 + (pos_weight - 1) t, s = sigmoid(x).
  loss<gen::BinaryCrossEntropyWithLogitsBackward0>(
      "BinaryCrossEntropyWithLogitsBackward0",
      [weighted](auto& n, Local& l) {
        const Tensor x = l.unpack(n.self_), t = l.unpack(n.target_), w = l.unpack(n.weight_);
        const Tensor s = x.sigmoid(), pos = l.unpack(n.pos_weight_);
        const Tensor c = pos.defined() ? (pos - 1) * t + 1 : Tensor();
        l.saved = {s, c, pos, w};
        l.first[0] = weighted(c.defined() ? at::rsub(t, 1) - c * at::rsub(s, 1) : s - t, w);
        if (l.active[1]) l.first[1] = weighted(pos.defined() ? (pos - 1) * at::softplus(-x) - x : -x, w);
      },
      [weighted](auto&, Local& l) {
        const Tensor &s = l.saved[0], &c = l.saved[1], &pos = l.saved[2], &w = l.saved[3];
        const Tensor bow = s - s * s;
        l.second[0] = weighted(c.defined() ? c * bow : bow, w);
        if (l.active[1]) {
          const Tensor cross = pos.defined() ? (pos - 1) * (s - 1) - 1 : at::full_like(s, -1);
          l.second[1] = l.second[2] = weighted(cross, w);
        }
      });
  // f = log(1 + exp(-t x)); t is not differentiated.
  loss<gen::SoftMarginLossBackward0>(
      "SoftMarginLossBackward0",
      [](auto& n, Local& l) {
        const Tensor t = l.unpack(n.target_);
        l.saved = {t, (t * l.unpack(n.self_)).neg().sigmoid()};
        l.first[0] = times(-1, t * l.saved[1]);
      },
      [](auto&, Local& l) {
        const Tensor &t = l.saved[0], &s = l.saved[1];
        l.second[0] = t * t * s * at::rsub(s, 1);
      });

  // ---- classification ---------------------------------------------------------------------------------
  nll<gen::NllLossBackward0>("NllLossBackward0",
                             [](auto&&... args) { return at::nll_loss_backward(args...); });
  nll<gen::NllLoss2DBackward0>("NllLoss2DBackward0",
                               [](auto&&... args) { return at::nll_loss2d_backward(args...); });
  weighing<gen::MultilabelMarginLossBackward0>(
      "MultilabelMarginLossBackward0", [](Local& l, auto& n, const Tensor& g, const Tensor& x) {
        return at::multilabel_margin_loss_backward(g, x, l.unpack(n.target_), n.reduction,
                                                   l.unpack(n.is_target_));
      });
  multi_margin();
}

}  // namespace hesse::rules
