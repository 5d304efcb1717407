// Connectionist temporal classification: y_n = -log sum over paths of prod_t exp(x[t, n, l_t]).
//
// With e_t(s) = x[t, l(s)] for the labels l(s), blanks between, s in [0, S), the forward recursion is
//
//     m_t(s) = logsumexp_j a_{t-1}(s - j),   a_t = m_t + e_t,   j = 0, 1, and 2 where it skips a blank,
//     log P  = logsumexp of a_T over the two last labels,
//
// whose weights w_t(s, j) and f(s) are the softmax of what each sums. Backward through it flow the posteriors
// c_t(s) = d log P / d e_t(s), that is c_T = f, c_{t-1}(s) = sum_j w_t(s + j, j) c_t(s + j). So
//
//     push, pull   a sum of x over t and class, weighted by -c
//     curve        the derivative of c: the tangent of a_t goes forward, then that of c_t back, with
//                  dw_t(s, j) = w_t(s, j) (da_{t-1}(s - j) - dm_t(s))
//
// PyTorch takes x for normalised: its gradient is that of y + sum exp(x) over the sample, whose second part
// log_softmax turns into a constant. Ours are the derivatives of the same: exp(x) - c, and exp(x) dx in
// curve.
//
// Samples do not meet. Beyond a sample's end all its weights are those of standing still. Log of zero is a
// large number: log P then stays one too, and y is infinite.
#include "reads.h"
#include "reduction.h"

namespace hesse::rules {

namespace {

constexpr double kNever = -1e30;

// y[s] = x[s - j], `fill` where there is none; and the transpose.
Tensor delayed(const Tensor& x, int64_t j, double fill = 0.0) {
  return at::constant_pad_nd(x, {j, 0}, fill).narrow(-1, 0, x.size(-1));
}
Tensor advanced(const Tensor& x, int64_t j) {
  return at::constant_pad_nd(x, {0, j}).narrow(-1, j, x.size(-1));
}

// What the recursions know. N may be a selection of samples.
struct Known {
  Tensor labels;  // [N, S] classes
  Tensor runs;    // [N, T] 1 until the sample ends, then 0
  Tensor w;       // [N, T, 3, S]
  Tensor c;       // [N, T, S]
  Tensor f;       // [N, S]

  explicit Known(const std::vector<Tensor>& saved)
      : labels(saved[0]), runs(saved[1]), w(saved[2]), c(saved[3]), f(saved[4]) {}
  Known of(const Tensor& samples) const {
    auto pick = [&samples](const Tensor& t) { return t.index_select(0, samples); };
    return Known({pick(labels), pick(runs), pick(w), pick(c), pick(f)});
  }
  int64_t T() const { return c.size(1); }
  Tensor weight(int64_t t, int64_t j) const { return w.select(1, t).select(1, j); }

  // x [R, N, T, C] at the labels, [R, N, T, S]; and the transpose.
  Tensor index(const Tensor& like) const {
    return labels.unsqueeze(1).expand({like.size(0), labels.size(0), T(), labels.size(1)});
  }
  Tensor emissions(const Tensor& x) const { return x.gather(-1, index(x)) * runs.unsqueeze(-1); }
  Tensor to_classes(const Tensor& e, int64_t classes) const {
    return at::zeros({e.size(0), e.size(1), e.size(2), classes}, e.options())
        .scatter_add(-1, index(e), e * runs.unsqueeze(-1));
  }
};

// The derivative of the posteriors along x, as rows [R, N, T, C].
Tensor bend(const Known& k, const Tensor& x) {
  const Tensor de = k.emissions(x);
  Tensor da = at::zeros_like(de.select(2, 0));
  std::vector<Tensor> before(k.T()), dm(k.T()), dc(k.T());
  for (int64_t t = 0; t < k.T(); ++t) {
    before[t] = da;
    dm[t] = k.weight(t, 0) * da + k.weight(t, 1) * delayed(da, 1) + k.weight(t, 2) * delayed(da, 2);
    da = dm[t] + de.select(2, t);
  }
  Tensor d = k.f * (da - (k.f * da).sum(-1, true));
  for (int64_t t = k.T() - 1; t >= 0; --t) {
    dc[t] = d;
    const Tensor c = k.c.select(1, t);
    auto back = [&](int64_t j) {
      return advanced(k.weight(t, j) * (d + c * (delayed(before[t], j) - dm[t])), j);
    };
    d = back(0) + back(1) + back(2);
  }
  return k.to_classes(at::stack(dc, 2), x.size(-1));
}

// Lengths as [N, 1].
Tensor lengths(Local&, const std::vector<int64_t>& given, const at::TensorOptions& options) {
  return constant(
      [&] { return at::tensor(given, at::kLong).to(options.device(), /*non_blocking=*/true).unsqueeze(-1); });
}
Tensor lengths(Local& l, const torch::autograd::SavedVariable& given, const at::TensorOptions& options) {
  return l.unpack(given).to(options).reshape({-1, 1});
}

template <class N>
void save(Local& l) {
  auto& n = node<N>(l);
  const Tensor x = l.unpack(n.log_probs_).transpose(0, 1);  // [N, T, C]
  const int64_t batch = x.size(0), T = x.size(1), S = l.unpack(n.result1_).size(2), L = S / 2;
  const auto whole = x.options().dtype(at::kLong).requires_grad(false);
  Tensor steps, letters;
  if constexpr (requires { n.input_lengths_; }) {
    steps = lengths(l, n.input_lengths_, whole);
    letters = lengths(l, n.target_lengths_, whole);
  } else {
    steps = lengths(l, n.input_lengths, whole);
    letters = lengths(l, n.target_lengths, whole);
  }

  // Targets are padded, [N, >= L], or one after the other. What lies beyond a length is not looked at.
  const Tensor place = at::arange(L, whole), targets = l.unpack(n.targets_).to(whole);
  Tensor target = at::zeros({batch, L}, whole);
  if (L > 0 && targets.dim() > 1) {
    target = targets.narrow(1, 0, L);
  } else if (L > 0) {
    const Tensor at = letters.cumsum(0) - letters + place;
    target = targets.index_select(0, at.clamp_max(targets.numel() - 1).flatten()).reshape({batch, L});
  }
  target = at::where(place.lt(letters), target, n.blank);
  const Tensor blanks = at::full({batch, 1}, n.blank, whole);
  const Tensor labels =
      at::cat({at::stack({blanks.expand({batch, L}), target}, -1).reshape({batch, 2 * L}), blanks}, 1);
  const Tensor skips = delayed(labels, 2, static_cast<double>(n.blank)).ne(labels);
  const Tensor runs = at::arange(T, whole).lt(steps);  // [N, T]

  const Tensor e = x.gather(2, labels.unsqueeze(1).expand({batch, T, S})).clamp_min(kNever);
  const Tensor stand = at::cat({at::ones({1, 1, 1}, x.options()), at::zeros({1, 2, 1}, x.options())}, 1);
  Tensor a = at::cat({at::zeros({batch, 1}, x.options()), at::full({batch, S - 1}, kNever, x.options())}, 1);
  std::vector<Tensor> w(T), c(T);
  for (int64_t t = 0; t < T; ++t) {
    const Tensor run = runs.select(1, t).unsqueeze(-1);
    const Tensor from = at::stack({a, delayed(a, 1, kNever), at::where(skips, delayed(a, 2, kNever), kNever)},
                                  1);  // [N, 3, S]
    w[t] = at::where(run.unsqueeze(-1), from.softmax(1), stand);
    a = at::where(run, from.logsumexp(1) + e.select(1, t), a);
  }
  const Tensor last = at::arange(S, whole) - 2 * letters;
  const Tensor ends = at::where(last.eq(0).logical_or(last.eq(-1)), a, kNever);
  const Tensor never = ends.logsumexp(-1, true).lt(kNever / 2);
  const double lost = n.zero_infinity ? 0.0 : std::numeric_limits<double>::quiet_NaN();
  const Tensor loss = at::where(never, at::full({}, lost, x.options()), 1.0);  // [N, 1]
  const Tensor f = ends.softmax(-1) * loss;
  Tensor d = f;
  for (int64_t t = T - 1; t >= 0; --t) {
    c[t] = d;
    auto back = [&](int64_t j) { return advanced(w[t].select(1, j) * d, j); };
    d = back(0) + back(1) + back(2);
  }
  l.saved = {labels, indicator(l, runs), at::stack(w, 1), at::stack(c, 1), f};
  const Known known(l.saved);
  const Tensor expected = known.to_classes(known.c.unsqueeze(0), x.size(2)).squeeze(0);
  const Tensor p = x.exp() * (known.runs * loss).unsqueeze(-1);
  l.saved.push_back(p.transpose(0, 1));
  l.first = {Factor((p - expected).transpose(0, 1))};
}

template <class N>
void ctc_loss(const char* name) {
  auto axes = [](Local& l) { return axes_of(l.in_shape[0], {0, 2}); };
  Rule rule;
  rule.covers = [](Local& l) { return numel_of(l.in_shape[0]) > 0; };
  rule.save = save<N>;
  rule.push = [axes](Local& l, const Tangents& dx) { return reduction_push(l, axes(l), dx); };
  rule.pull = [axes](Local& l, const Tangents& dgy) { return reduction_pull(l, axes(l), dgy); };
  rule.curve = [](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) -> Tangents {
    if (!gy[0].defined()) return Tangents(1);
    const Known known(l.saved);
    const Shape& in = l.in_shape[0];
    Tangent bent = map_axes(
        dx[0], {0, 2}, {in[0], in[2]},
        [known](const Tensor& rows, const Tensor& samples) { return bend(known.of(samples), rows); },
        at::arange(in[1], known.labels.options()));
    return {scale(minus(scale(dx[0], l.saved[5]), std::move(bent)), gy[0].reshape({1, in[1], 1}))};
  };
  add_rule(name, std::move(rule));
}

}  // namespace

void ctc() {
  ctc_loss<gen::CtcLossBackward0>("CtcLossBackward0");  // lengths as numbers
  ctc_loss<gen::CtcLossBackward1>("CtcLossBackward1");  // lengths as tensors
}

}  // namespace hesse::rules
