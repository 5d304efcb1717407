// Embedding tables, and bags of what was looked up in them. With E = the rows looked up and S = the sums over
// each bag:
//
//     embedding           y = E(w)
//     bag, sum and mean   y = S(c o p o E(w)),   p: the weights of each entry, c: 1 or 1 / the bag's size
//         push   dy  = S(c p E(dw)) + S(c dp E(w))
//         pull   dgw = E'(c p S'(dgy)),   dgp = sum(c E(w) S'(dgy)) over a row
//         curve  dgw = E'(c dp S'(gy)),   dgp = sum(c E(dw) S'(gy))
//     bag, max            y = w at the rows where the maxima were
//
// Rows of the padding index count for nothing.
#include "embeddings.h"
#include "picks.h"

#include "factors.h"
#include "shapes.h"

namespace hesse::rules {

namespace {

// Rows [entries..., width] of a table.
Picks looked_up(const Local& l, const Tensor& indices, int64_t padding) {
  Picks p = several(l.in_shape[0], {indices}, l.out_options[0].device(), std::nullopt);
  if (padding >= 0) p.weight = indicator(l, indices != padding).unsqueeze(-1);
  return p;
}

void embedding() {
  using N = gen::EmbeddingBackward0;
  Rule rule;
  rule.covers = [](Local& l) { return !node<N>(l).scale_grad_by_freq; };  // not the gradient then
  rule.save = [](Local& l) {
    auto& n = node<N>(l);
    l.plan = std::make_shared<Picks>(looked_up(l, l.unpack(n.indices_), n.padding_idx.expect_int()));
  };
  rule.push = [](Local& l, const Tangents& dx) -> Tangents { return {pick(plan<Picks>(l), dx[0])}; };
  rule.pull = [](Local& l, const Tangents& dgy) -> Tangents { return {unpick(plan<Picks>(l), dgy[0])}; };
  add_rule("EmbeddingBackward0", std::move(rule));
}

struct Bags {
  Picks rows;  // of the entries, in the table
  Picks bags;  // of the entries, in the bags; weighted by c
  Tensor p;    // [entries, 1]; undefined: 1
  Tensor w;    // the rows looked up, where p varies
  bool maxima = false;
};

constexpr int64_t kMean = 1, kMax = 2;

Bags bags_of(gen::EmbeddingBagBackward0& n, Local& l) {
  const Tensor indices = l.unpack(n.indices_), offsets = l.unpack(n.offsets_);
  // The table is saved where the entries' weights vary; else its shape is known from itself.
  const Tensor table = l.unpack(n.weight_);
  const Shape& y = l.out_shape[0];
  const Shape shape = l.active[0] ? l.in_shape[0] : Shape(table.sizes().begin(), table.sizes().end());
  if (n.mode == kMax) {  // an empty bag is zero
    Picks p = along(shape, 0, l.unpack(n.result3_).to(at::kLong).clamp_min(0));
    p.weight = indicator(l, l.unpack(n.result2_) > 0).unsqueeze(-1);
    return {std::move(p), flat({}, {}, at::zeros({}, at::kLong)), {}, {}, true};
  }
  Picks rows = several(shape, {indices}, l.out_options[0].device(), std::nullopt);
  // An entry's bag is the last that begins at or before it.
  const Tensor place = at::arange(indices.numel(), offsets.options());
  const Tensor bag = at::searchsorted(offsets, place, /*out_int32=*/false, /*right=*/true) - 1;
  Tensor c = indicator(l, (bag >= 0) & (bag < y[0]));
  if (n.padding_idx >= 0) c = c * (indices != n.padding_idx);
  const Tensor id = bag.clamp(0, std::max<int64_t>(y[0] - 1, 0));
  Picks bags = along_vector(y, 0, id);
  if (n.mode == kMean) {
    const Tensor size = at::zeros({y[0]}, c.options()).index_add(0, id, c);
    c = c / size.clamp_min(1).index_select(0, id);
  }
  bags.weight = c.unsqueeze(-1);
  const Tensor p = l.unpack(n.per_sample_weights_);
  Tensor w;
  if (l.inputs() > 1 && l.active[1]) w = table.index_select(0, indices.to(at::kLong));
  return {std::move(rows), std::move(bags), p.defined() ? p.unsqueeze(-1) : p, w, false};
}

void embedding_bag() {
  using N = gen::EmbeddingBagBackward0;
  auto weighted = [](const Bags& b, Tangent t) { return b.p.defined() ? scale(std::move(t), b.p) : t; };
  auto column = [](const Local& l, const Tangent& dp) {
    return view(cast(dp, dtype_of(l)), {dp.numel(), 1});
  };
  auto wide = [](const Bags& b, Tangent t) { return expand(std::move(t), b.rows.y.whole); };
  auto moves = [](const Tangents& t, size_t i) { return i < t.size() && !t[i].zero(); };
  auto wanted = [](const Local& l, size_t i) { return i < l.inputs() && l.wanted[i]; };
  Rule rule;
  rule.covers = [](Local& l) { return !node<N>(l).scale_grad_by_freq; };
  rule.save = [](Local& l) { l.plan = std::make_shared<Bags>(bags_of(node<N>(l), l)); };
  rule.push = [=](Local& l, const Tangents& dx) -> Tangents {
    const auto& b = plan<Bags>(l);
    if (b.maxima) return {pick(b.rows, dx[0])};
    Tangent in = zero_like(moves(dx, 0) ? dx[0] : dx[1], b.rows.y.whole);
    in.options = l.out_options[0].requires_grad(std::nullopt);
    if (moves(dx, 0)) accumulate(in, weighted(b, pick(b.rows, cast(dx[0], dtype_of(l)))));
    if (moves(dx, 1)) accumulate(in, scale(wide(b, column(l, dx[1])), b.w));
    return {unpick(b.bags, std::move(in))};
  };
  rule.pull = [=](Local& l, const Tangents& dgy) {
    const auto& b = plan<Bags>(l);
    Tangents dgx(l.inputs());
    if (b.maxima) {
      dgx[0] = unpick(b.rows, dgy[0]);
      return dgx;
    }
    const Tangent g = pick(b.bags, dgy[0]);
    if (wanted(l, 0)) dgx[0] = unpick(b.rows, weighted(b, g));
    if (wanted(l, 1)) dgx[1] = view(sum(scale(g, b.w), {1}, false), l.in_shape[1]);
    return dgx;
  };
  rule.curve = [=](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
    const auto& b = plan<Bags>(l);
    Tangents dgx(l.inputs());
    if (!b.w.defined()) return dgx;
    if (l.bent.empty()) l.bent = {pick(b.bags, gy[0])};
    if (wanted(l, 0) && moves(dx, 1)) {
      dgx[0] = unpick(b.rows, scale(wide(b, column(l, dx[1])), l.bent[0]));
    }
    if (wanted(l, 1) && moves(dx, 0)) {
      const Tangent met = scale(pick(b.rows, cast(dx[0], dtype_of(l))), l.bent[0]);
      dgx[1] = view(sum(met, {1}, false), l.in_shape[1]);
    }
    return dgx;
  };
  add_rule("EmbeddingBagBackward0", std::move(rule));
}

}  // namespace

void embeddings() {
  embedding();
  embedding_bag();
  renorm();
}

}  // namespace hesse::rules
