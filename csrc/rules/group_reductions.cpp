// Reductions of groups: scatter_reduce, index_reduce and segment_reduce. An index tells the group that each
// element v belongs to; a group may have a value x of its own, which counts as m says. With F(x, v) = m o x +
// the sums of v over the groups, and F' its transpose:
//
//     sum, mean    y = F(x, v) / how many
//     amax, amin   the same of the elements that are the extremum, shared out among equal ones
//     prod         with u = 1/v and e = 0 off the zeros, u = 0 and e = 1 on them, z = F(e), R the product of
//                  the others, c_i = R where z = i, else 0 (v here: x as well):
//
//         push   dy  = c_0 F(u dv) + c_1 F(e dv)
//         pull   dgv = u F'(c_0 dgy) + e F'(c_1 dgy)
//         curve  dgv = u F'(a) + e F'(b) - (u^2 F'(gy c_0) + e F'(gy c_2)) dv
//                with a = gy (c_0 F(u dv) + c_1 F(e dv)), b = gy (c_1 F(u dv) + c_2 F(e dv))
//
// A product's derivatives hold at the point, not around it where a factor is zero: when the Hessian itself is
// to be differentiated, its node is driven.
#include "picks.h"

#include "factors.h"
#include "shapes.h"

namespace hesse::rules {

namespace {

// A value's part in a reduction: its slopes where that is linear, u and e where it is a product.
struct Part {
  Tensor slope, u, e;
};

struct Groups {
  Picks at;  // of the elements, in the groups; its weight leaves out those in no group
  Tensor m;  // undefined: groups have no value of their own
  Part own, element;
  bool product = false;
  Tensor c0, c1, c2;

  bool owning() const { return m.defined(); }
  Tensor total(const Tensor& x, const Tensor& v) const {
    const Tensor sum = unpick(at, v);
    return owning() ? m * x + sum : sum;
  }
};

// ---- what the op saved, as groups ---------------------------------------------------------------------

// A value laid out as a side of the picks: [carried..., others as one].
Tensor laid_out(const Side& side, const Tensor& t, int64_t carried) {
  const Tensor c = t.reshape(side.grouped).contiguous();
  const Tensor part = c.as_strided(side.part.size, side.part.stride, c.storage_offset() + side.part.offset);
  return part.flatten(carried, -1);
}

// The products over groups of what is not zero, onto `first`.
Tensor products(const Picks& p, const Tensor& first, const Tensor& v) {
  const Tensor rows = laid_out(p.y, v, p.carried);
  const Tensor out =
      laid_out(p.x, first, p.carried).scatter_reduce(-1, p.index.expand(rows.sizes()), rows, "prod");
  Tensor R = first.reshape(p.x.grouped).clone(at::MemoryFormat::Contiguous);
  R.as_strided(p.x.part.size, p.x.part.stride, p.x.part.offset).copy_(out.reshape(p.x.part.size));
  return R.reshape(p.x.whole);
}

struct Values {
  Tensor x, v, y;  // x undefined: none
  double initial = 1.0;
};

void reduce_linearly(Groups& g, const std::string& how, const Values& of) {
  const Tensor ones = at::ones(g.at.y.whole, of.v.options());
  Tensor in_own, in = ones;
  if (how == "amax" || how == "amin" || how == "max" || how == "min") {
    in = (of.v == pick(g.at, of.y)).to(of.v.scalar_type());
    if (g.owning()) in_own = (of.x == of.y).to(of.v.scalar_type());
  } else if (g.owning()) {
    in_own = at::ones_like(of.x);
  }
  // Of equal extrema, a value that does not count is shared with all the same, as PyTorch does.
  const bool counted = how == "mean" || !g.owning();
  const Tensor sum = unpick(g.at, in), count = !g.owning() ? sum : (counted ? g.m * in_own : in_own) + sum;
  const Tensor share = how == "sum" ? at::ones_like(count) : count.clamp_min(1).reciprocal();
  if (g.owning()) g.own.slope = g.m * in_own * share;
  g.at.weight = pick(g.at, share) * in;
}

void reduce_by_product(Groups& g, const Values& of) {
  auto split = [](const Tensor& t) {
    const Tensor e = (t == 0).to(t.scalar_type());
    return Part{{}, (t + e).reciprocal() - e, e};
  };
  g.product = true;
  g.element = split(of.v);
  Tensor v = of.v + g.element.e, first = at::full(g.at.x.whole, of.initial, v.options());
  if (g.at.weight.defined()) v = at::where(g.at.weight == 0, at::ones({}, v.options()), v);
  if (g.owning()) {
    g.own = split(of.x);
    first = at::where(g.m == 0, at::ones({}, v.options()), of.x + g.own.e);
  }
  const Tensor R = products(g.at, first, v), none = at::zeros({}, v.options());
  const Tensor z = g.total(g.own.e, g.element.e);
  g.c0 = at::where(z == 0, R, none);
  g.c1 = at::where(z == 1, R, none);
  g.c2 = at::where(z == 2, R, none);
}

// ---- the maps -----------------------------------------------------------------------------------------

void add(Tangent& sum, Tangent t) {
  if (sum.K == 0) {
    sum = std::move(t);
  } else {
    accumulate(sum, std::move(t));
  }
}

// The inputs: a group's own value, if it has one, and the elements.
size_t elements(const Groups& g) { return g.owning() ? 1 : 0; }

// F of tangents scaled by one of the factors of each part.
Tangent total(const Groups& g, const Local& l, const Tangents& dx, Tensor Part::* by) {
  const size_t i = elements(g);
  Tangent sum;
  if (g.owning() && !dx[0].zero()) sum = scale(scale(cast(dx[0], dtype_of(l)), g.m), g.own.*by);
  if (!dx[i].zero()) {
    Tangent t = fitted(cast(dx[i], dtype_of(l)), g.at.y.whole);
    if ((g.element.*by).defined()) t = scale(std::move(t), g.element.*by);
    add(sum, unpick(g.at, std::move(t)));
  }
  return sum;
}

// F' of a tangent, scaled likewise, added to those of the inputs.
void spread(const Groups& g, const Local& l, const Tangent& t, Tensor Part::* by, Tangents& dgx) {
  const size_t i = elements(g);
  if (g.owning() && l.wanted[0]) add(dgx[0], scale(scale(t, g.m), g.own.*by));
  if (!l.wanted[i]) return;
  Tangent picked = pick(g.at, t);
  if ((g.element.*by).defined()) picked = scale(std::move(picked), g.element.*by);
  add(dgx[i], std::move(picked));
}

Tangents fit(const Groups& g, const Local& l, Tangents dgx) {
  const size_t i = elements(g);
  if (l.wanted[i]) dgx[i] = fitted_back(std::move(dgx[i]), l.in_shape[i]);
  return dgx;
}

Tangents push(Local& l, const Tangents& dx) {
  const auto& g = plan<Groups>(l);
  if (!g.product) return {total(g, l, dx, &Part::slope)};
  Tangent dy = scale(total(g, l, dx, &Part::u), g.c0);
  accumulate(dy, scale(total(g, l, dx, &Part::e), g.c1));
  return {std::move(dy)};
}

Tangents pull(Local& l, const Tangents& dgy) {
  const auto& g = plan<Groups>(l);
  Tangents dgx(l.inputs());
  if (g.product) {
    spread(g, l, scale(dgy[0], g.c0), &Part::u, dgx);
    spread(g, l, scale(dgy[0], g.c1), &Part::e, dgx);
  } else {
    spread(g, l, dgy[0], &Part::slope, dgx);
  }
  return fit(g, l, std::move(dgx));
}

Tangents curve(Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
  const auto& g = plan<Groups>(l);
  Tangents dgx(l.inputs());
  if (!g.product) return dgx;
  const size_t i = elements(g);
  if (l.memo.empty()) {
    const Tensor g0 = gy[0] * g.c0, g1 = gy[0] * g.c1, g2 = gy[0] * g.c2;
    auto square = [&](const Part& p, const Tensor& a, const Tensor& b) { return p.u * p.u * a + p.e * b; };
    l.memo = {g0, g1, g2, square(g.element, pick(g.at, g0), pick(g.at, g2)),
              g.owning() ? g.m * square(g.own, g0, g2) : Tensor()};
  }
  const Tangent U = total(g, l, dx, &Part::u), E = total(g, l, dx, &Part::e);
  Tangent a = scale(U, l.memo[0]), b = scale(U, l.memo[1]);
  accumulate(a, scale(E, l.memo[1]));
  accumulate(b, scale(E, l.memo[2]));
  spread(g, l, a, &Part::u, dgx);
  spread(g, l, b, &Part::e, dgx);
  auto without_itself = [&](size_t j, const Tensor& c, const Shape& shape) {
    if (!l.wanted[j] || dx[j].zero()) return;
    add(dgx[j], scale(scale(fitted(cast(dx[j], dtype_of(l)), shape), c), -1.0));
  };
  without_itself(i, l.memo[3], g.at.y.whole);
  if (g.owning()) without_itself(0, l.memo[4], g.at.x.whole);
  return fit(g, l, std::move(dgx));
}

// groups(node, local) -> {Groups, Values}.
template <class N, class F>
void reducing(const char* name, F groups) {
  Rule rule;
  rule.covers = [](Local& l) { return !c10::GradMode::is_enabled() || node<N>(l).reduce != "prod"; };
  rule.save = [groups](Local& l) {
    const at::NoGradGuard constant;  // slopes of linear maps; products are not differentiated
    auto& n = node<N>(l);
    auto [g, of] = groups(n, l);
    if (n.reduce == "prod") {
      reduce_by_product(g, of);
    } else {
      reduce_linearly(g, n.reduce, of);
    }
    l.plan = std::make_shared<Groups>(std::move(g));
  };
  rule.push = push;
  rule.pull = pull;
  rule.curve = curve;
  add_rule(name, std::move(rule));
}

// Elements scattered to groups that have a value.
template <class N>
std::pair<Groups, Values> scattered(N& n, Local& l, Picks at, const Tensor& v) {
  const at::TensorOptions options = l.out_options[0].requires_grad(std::nullopt);
  Groups g{std::move(at), {}, {}, {}, false, {}, {}, {}};
  g.m = n.include_self ? at::ones({}, options) : untouched(g.at, options);
  Tensor part = v;
  for (int64_t a = 0; a < v.dim() && v.dim() == static_cast<int64_t>(g.at.y.whole.size()); ++a) {
    part = part.narrow(a, 0, g.at.y.whole[a]);
  }
  return {std::move(g), Values{l.unpack(n.self_), part.reshape(g.at.y.whole), l.unpack(n.result_)}};
}

// The segment of each element along the axis, and whether it has one: [outer..., n, 1...].
std::pair<Tensor, Tensor> segments(const Tensor& lengths, const Tensor& offsets, const Shape& data,
                                   int64_t axis) {
  const Tensor ends = offsets.defined() ? offsets.to(at::kLong).narrow(-1, 1, offsets.size(-1) - 1)
                                        : lengths.to(at::kLong).cumsum(-1);
  Shape size(ends.sizes().begin(), ends.sizes().end()), column(data.begin(), data.begin() + axis + 1);
  size.back() = data[axis];
  column.resize(data.size(), 1);
  const Tensor place = at::arange(data[axis], ends.options()).expand(size).contiguous();
  const Tensor id = at::searchsorted(ends.contiguous(), place, /*out_int32=*/false, /*right=*/true);
  Tensor in = id < ends.size(-1);
  if (offsets.defined()) in = in & (place >= offsets.narrow(-1, 0, 1));
  return {id.clamp_max(std::max<int64_t>(ends.size(-1) - 1, 0)).reshape(column), in.reshape(column)};
}

}  // namespace

void group_reductions() {
  reducing<gen::ScatterReduceBackward0>("ScatterReduceBackward0", [](auto& n, Local& l) {
    return scattered(n, l, along(l.out_shape[0], n.dim, l.unpack(n.index_)), l.unpack(n.src_));
  });
  reducing<gen::IndexReduceBackward0>("IndexReduceBackward0", [](auto& n, Local& l) {
    return scattered(n, l, along_vector(l.out_shape[0], n.dim, l.unpack(n.index_)), l.unpack(n.source_));
  });
  reducing<gen::SegmentReduceBackward0>("SegmentReduceBackward0", [](auto& n, Local& l) {
    const Shape& data = l.in_shape[0];
    const int64_t axis = wrap(n.axis, data);
    const auto [id, in] = segments(l.unpack(n.lengths_), l.unpack(n.offsets_), data, axis);
    Groups g{along(l.out_shape[0], axis, id.expand(data)), {}, {}, {}, false, {}, {}, {}};
    g.at.weight = indicator(l, in);
    Values of{{}, l.unpack(n.data_), l.unpack(n.result_)};
    if (n.initial) of.initial = n.initial->toDouble();
    return std::pair(std::move(g), std::move(of));
  });
}

}  // namespace hesse::rules
