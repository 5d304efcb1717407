// Losses: an elementwise function of prediction x and target t, then a reduction (0 none, 1 mean, 2 sum). A row gives
// the elementwise partials; nll_loss is linear in x, weighted by a one-hot of the target.
#include "factors.h"

namespace hesse::rules {

namespace {

double share(int64_t reduction, int64_t numel) { return reduction == 1 ? 1.0 / static_cast<double>(numel) : 1.0; }

// The elementwise part lives in l.inner, whose one output has the shape of x.
template <class N, class First, class Second>
void loss(const char* name, First first, Second second) {
  auto factor = [](Local& l) { return share(node<N>(l).reduction, numel_of(l.inner->out_shape[0])); };
  auto reduced = [](Local& l) { return node<N>(l).reduction != 0; };
  Rule rule;
  rule.save = [first](Local& l) {
    auto& n = node<N>(l);
    l.inner = std::make_shared<Local>(l);
    const Tensor x = l.unpack(n.self_);
    l.inner->out_shape = {Shape(x.sizes().begin(), x.sizes().end())};
    l.inner->first.assign(l.inputs(), Factor(0.0));
    first(n, *l.inner);
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
    if (l.memo.empty()) l.memo = {factor(l) == 1.0 ? gy[0] : gy[0] * factor(l)};
    return elementwise_curve(inner, {l.memo[0].expand(inner.out_shape[0])}, dx);
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

// -w[target] at the target's class, of x's shape; for the mean, over the total weight.
template <class N>
Tensor one_hot(N& n, Local& l) {
  const Tensor x = l.unpack(n.self_), weight = l.unpack(n.weight_);
  const int64_t classes = x.dim() == 1 ? 0 : 1;
  const Tensor target = l.unpack(n.target_).unsqueeze(classes);
  const Tensor ignored = target == n.ignore_index.expect_int();
  const Tensor index = target.masked_fill(ignored, 0);
  Tensor w = weight.defined() ? weight.to(x.scalar_type()).index_select(0, index.reshape({-1})).reshape(index.sizes())
                              : at::ones(index.sizes(), x.options());
  w = w.masked_fill(ignored, 0).neg();
  if (n.reduction == 1) w = w / l.unpack(n.total_weight_);
  return at::zeros(x.sizes(), x.options()).scatter(classes, index, w);
}

template <class N>
void nll(const char* name) {
  auto axis = [](Local& l) -> int64_t { return l.in_shape[0].size() == 1 ? 0 : 1; };
  Rule rule;
  rule.save = [](Local& l) { l.saved = {one_hot(node<N>(l), l)}; };
  rule.push = [axis](Local& l, const Tangents& dx) -> Tangents {
    Tangent dy = scale(dx[0], l.saved[0]);
    if (node<N>(l).reduction == 0) return {view(sum(std::move(dy), {axis(l)}, false), l.out_shape[0])};
    return {sum_to(std::move(dy), l.out_shape[0])};
  };
  rule.pull = [axis](Local& l, const Tangents& dgy) -> Tangents {
    Tangent g = dgy[0];
    if (node<N>(l).reduction == 0) {
      Shape kept = l.in_shape[0];
      kept[axis(l)] = 1;
      g = view(std::move(g), kept);
    }
    return {scale(expand(std::move(g), l.in_shape[0]), l.saved[0])};
  };
  add_rule(name, std::move(rule));
}

}  // namespace

void losses() {
  // ---- of x - t ----------------------------------------------------------------------------------------------
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

  // ---- binary cross entropy ------------------------------------------------------------------------------------
  // f = -w (t log x + (1 - t) log(1 - x)), the denominator x (1 - x) bounded below as PyTorch's is.
  const auto weighted = [](auto& n, const Local& l, Tensor t) {
    const Tensor w = l.unpack(n.weight_);
    return w.defined() ? t * w : t;
  };
  loss<gen::BinaryCrossEntropyBackward0>(
      "BinaryCrossEntropyBackward0",
      [weighted](auto& n, Local& l) {
        const Tensor x = l.unpack(n.self_), t = l.unpack(n.target_);
        const Tensor room = (at::rsub(x, 1) * x).clamp_min(1e-12);
        l.saved = {x, t, room};
        l.first[0] = weighted(n, l, (x - t) / room);
        if (l.active[1]) l.first[1] = weighted(n, l, at::log1p(-x).clamp_min(-100) - x.log().clamp_min(-100));
      },
      [weighted](auto& n, Local& l) {
        const Tensor &x = l.saved[0], &t = l.saved[1], &room = l.saved[2];
        l.second[0] = weighted(n, l, (x * x - 2 * x * t + t) / (room * room));
        if (l.active[1]) l.second[1] = l.second[2] = weighted(n, l, room.reciprocal().neg());
      });
  // f = w ((1 - t) x + c softplus(-x)), c = 1 + (pos_weight - 1) t, s = sigmoid(x).
  loss<gen::BinaryCrossEntropyWithLogitsBackward0>(
      "BinaryCrossEntropyWithLogitsBackward0",
      [weighted](auto& n, Local& l) {
        const Tensor x = l.unpack(n.self_), t = l.unpack(n.target_), pos = l.unpack(n.pos_weight_);
        const Tensor s = x.sigmoid();
        const Tensor c = pos.defined() ? (pos - 1) * t + 1 : Tensor();
        l.saved = {s, c, pos};
        l.first[0] = weighted(n, l, c.defined() ? 1 - t - c * at::rsub(s, 1) : s - t);
        if (l.active[1]) l.first[1] = weighted(n, l, pos.defined() ? (pos - 1) * at::softplus(-x) - x : -x);
      },
      [weighted](auto& n, Local& l) {
        const Tensor &s = l.saved[0], &c = l.saved[1], &pos = l.saved[2];
        const Tensor bow = s - s * s;
        l.second[0] = weighted(n, l, c.defined() ? c * bow : bow);
        if (l.active[1]) {
          const Tensor cross = pos.defined() ? (pos - 1) * (s - 1) - 1 : at::full_like(s, -1);
          l.second[1] = l.second[2] = weighted(n, l, cross);
        }
      });

  // ---- classification --------------------------------------------------------------------------------------------
  nll<gen::NllLossBackward0>("NllLossBackward0");
  nll<gen::NllLoss2DBackward0>("NllLoss2DBackward0");
}

}  // namespace hesse::rules
