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
// That holds at a point, not around it where a factor is zero. When the Hessian itself is to be
// differentiated, products that leave out one factor, P_j, and two, P_jk, are formed instead:
//
//     y's slopes are P_j, and curve  dgv_j = sum over k of gy P_jk dv_k
#include "picks.h"

#include "factors.h"
#include "ledger.h"
#include "shapes.h"

namespace hesse::rules {

namespace {

// A value's part in a reduction: its slopes where that is linear, u and e where it is a product.
struct Part {
  Tensor slope, u, e;
};

struct Groups {
  Picks at;              // of the elements, in the groups; its weight leaves out those in no group
  Tensor m;              // undefined: groups have no value of their own
  double initial = 1.0;  // a factor of products
  Part own, element;
  enum { linear, product, live_product } kind = linear;
  Tensor c0, c1, c2;  // of a product
  Tensor line;        // of a live one: all factors, [carried..., M]
  Tensor together;    // and which two of them share a group

  explicit Groups(Picks picks) : at(std::move(picks)) {}
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

// And back, onto a value of the side's shape.
Tensor laid_back(const Side& side, const Tensor& rows, const Tensor& onto) {
  Tensor t = onto.expand(side.whole).reshape(side.grouped).clone(at::MemoryFormat::Contiguous);
  t.as_strided(side.part.size, side.part.stride, side.part.offset).copy_(rows.reshape(side.part.size));
  return t.reshape(side.whole);
}

struct Values {
  Tensor x, v, y;  // x undefined: none
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
  g.kind = Groups::product;
  g.element = split(of.v);
  Tensor v = of.v + g.element.e, first = at::full(g.at.x.whole, g.initial, v.options());
  if (g.at.weight.defined()) v = at::where(g.at.weight == 0, at::ones({}, v.options()), v);
  if (g.owning()) {
    g.own = split(of.x);
    first = at::where(g.m == 0, at::ones({}, v.options()), of.x + g.own.e);
  }
  const Tensor rows = laid_out(g.at.y, v, g.at.carried);
  const Tensor into = laid_out(g.at.x, first, g.at.carried);
  const Tensor R =
      laid_back(g.at.x, into.scatter_reduce(-1, g.at.index.expand(rows.sizes()), rows, "prod"), first);
  const Tensor none = at::zeros({}, v.options());
  const Tensor z = g.total(g.own.e, g.element.e);
  g.c0 = at::where(z == 0, R, none);
  g.c1 = at::where(z == 1, R, none);
  g.c2 = at::where(z == 2, R, none);
}

// Differentiable in x and v twice more.
void reduce_by_live_product(Groups& g, const Values& of) {
  constexpr int64_t most = int64_t{1} << 26;  // elements of what leaves out two
  const int64_t carried = g.at.carried;
  auto both = [&](const Tensor& own, const Tensor& element) {  // [carried..., M]
    const Tensor rows = laid_out(g.at.y, element.expand(g.at.y.whole), carried);
    if (!g.owning()) return rows;
    return at::cat({laid_out(g.at.x, own.expand(g.at.x.whole), carried), rows}, -1);
  };
  g.kind = Groups::live_product;
  g.line = both(of.x, of.v);
  const int64_t M = g.line.size(-1), n = g.owning() ? M - g.at.index.size(-1) : 0;
  if (g.line.numel() * M * M > most) {
    throw Unsupported(std::string(ledger().op) +
                      ", with create_graph: the products without each two elements of " + std::to_string(M) +
                      " would be too large");
  }
  const Tensor weight = g.at.weight.defined() ? g.at.weight : at::ones({}, of.v.options());
  const Tensor in = both(g.m, weight) != 0;
  Shape size(g.line.sizes().begin(), g.line.sizes().end());
  size.back() = g.at.index.size(-1);
  Tensor id = g.at.index.expand(size);
  size.back() = n;
  if (n > 0) id = at::cat({at::arange(n, id.options()).expand(size), id}, -1);
  g.together = (id.unsqueeze(-1) == id.unsqueeze(-2)) & in.unsqueeze(-1) & in.unsqueeze(-2) &
               at::eye(M, in.options()).logical_not();
  const Tensor one = at::full({}, 1.0, g.line.options());
  const Tensor P = at::where(g.together, g.line.unsqueeze(-2), one).prod(-1) * g.initial;
  g.element.slope = laid_back(g.at.y, P.narrow(-1, n, M - n), P.new_zeros({}));
  if (n > 0) g.own.slope = laid_back(g.at.x, P.narrow(-1, 0, n), g.m);
}

// ---- the maps -----------------------------------------------------------------------------------------

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
    add_to(sum, unpick(g.at, std::move(t)));
  }
  return sum;
}

// F' of a tangent, scaled likewise, added to those of the inputs.
void spread(const Groups& g, const Local& l, const Tangent& t, Tensor Part::* by, Tangents& dgx) {
  const size_t i = elements(g);
  if (g.owning() && l.wanted[0]) add_to(dgx[0], scale(scale(t, g.m), g.own.*by));
  if (!l.wanted[i]) return;
  Tangent picked = pick(g.at, t);
  if ((g.element.*by).defined()) picked = scale(std::move(picked), g.element.*by);
  add_to(dgx[i], std::move(picked));
}

Tangents fit(const Groups& g, const Local& l, Tangents dgx) {
  const size_t i = elements(g);
  if (l.wanted[i]) dgx[i] = fitted_back(std::move(dgx[i]), l.in_shape[i]);
  return dgx;
}

Tangents push(Local& l, const Tangents& dx) {
  const auto& g = plan<Groups>(l);
  if (g.kind != Groups::product) return {total(g, l, dx, &Part::slope)};
  Tangent dy = scale(total(g, l, dx, &Part::u), g.c0);
  accumulate(dy, scale(total(g, l, dx, &Part::e), g.c1));
  return {std::move(dy)};
}

Tangents pull(Local& l, const Tangents& dgy) {
  const auto& g = plan<Groups>(l);
  Tangents dgx(l.inputs());
  if (g.kind == Groups::product) {
    spread(g, l, scale(dgy[0], g.c0), &Part::u, dgx);
    spread(g, l, scale(dgy[0], g.c1), &Part::e, dgx);
  } else {
    spread(g, l, dgy[0], &Part::slope, dgx);
  }
  return fit(g, l, std::move(dgx));
}

// bent: gy P_jk by pairs of sides.
Tangents live_curve(const Groups& g, Local& l, const Tensor& gy, const Tangents& dx) {
  const Picks& p = g.at;
  const int64_t M = g.line.size(-1), n = g.owning() ? M - p.index.size(-1) : 0;
  const size_t inputs = elements(g) + 1;
  auto side = [&](size_t i) -> const Side& { return i == elements(g) ? p.y : p.x; };
  auto part = [&](size_t i, const Tensor& t, int64_t dim) {
    return i == elements(g) ? t.narrow(dim, n, M - n) : t.narrow(dim, 0, n);
  };
  if (l.bent.empty()) {
    Tensor by = laid_out(p.y, pick(Picks{p.x, p.y, p.carried, p.index, {}}, gy), p.carried);
    if (n > 0) by = at::cat({laid_out(p.x, gy, p.carried), by}, -1);
    const Tensor others = g.together.unsqueeze(-2) & at::eye(M, g.together.options()).logical_not();
    const Tensor one = at::full({}, 1.0, g.line.options());
    const Tensor P = at::where(others, g.line.unsqueeze(-2).unsqueeze(-2), one).prod(-1) * g.together;
    const Tensor matrix = P * by.unsqueeze(-1) * g.initial;
    for (size_t i = 0; i < inputs; ++i) {
      for (size_t j = 0; j < inputs; ++j) l.bent.push_back(part(j, part(i, matrix, -2), -1));
    }
  }
  auto multiply = [](const Tensor& rows, const Tensor& matrix) {
    return at::einsum("rdj,dij->rdi", {rows, matrix});
  };
  Tangents dgx(l.inputs());
  for (size_t i = 0; i < inputs; ++i) {
    for (size_t j = 0; j < inputs; ++j) {
      if (!l.wanted[i] || dx[j].zero()) continue;
      Tangent t = cast(dx[j], dtype_of(l));
      auto along = [&](Tangent s, int64_t axis, int64_t size) {
        return map_axes(std::move(s), {axis}, {size}, multiply, l.bent[i * inputs + j]);
      };
      add_to(dgx[i], moved(p, std::move(t), side(j), side(i), along));
    }
  }
  return fit(g, l, std::move(dgx));
}

Tangents curve(Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
  const auto& g = plan<Groups>(l);
  Tangents dgx(l.inputs());
  if (g.kind == Groups::linear) return dgx;
  if (g.kind == Groups::live_product) return live_curve(g, l, gy[0], dx);
  const size_t i = elements(g);
  if (l.bent.empty()) {
    const Tensor g0 = gy[0] * g.c0, g1 = gy[0] * g.c1, g2 = gy[0] * g.c2;
    auto square = [&](const Part& p, const Tensor& a, const Tensor& b) { return p.u * p.u * a + p.e * b; };
    l.bent = {g0, g1, g2, square(g.element, pick(g.at, g0), pick(g.at, g2)),
              g.owning() ? g.m * square(g.own, g0, g2) : Tensor()};
  }
  const Tangent U = total(g, l, dx, &Part::u), E = total(g, l, dx, &Part::e);
  Tangent a = scale(U, l.bent[0]), b = scale(U, l.bent[1]);
  accumulate(a, scale(E, l.bent[1]));
  accumulate(b, scale(E, l.bent[2]));
  spread(g, l, a, &Part::u, dgx);
  spread(g, l, b, &Part::e, dgx);
  auto without_itself = [&](size_t j, const Tensor& c, const Shape& shape) {
    if (!l.wanted[j] || dx[j].zero()) return;
    add_to(dgx[j], scale(scale(fitted(cast(dx[j], dtype_of(l)), shape), c), -1.0));
  };
  without_itself(i, l.bent[3], g.at.y.whole);
  if (g.owning()) without_itself(0, l.bent[4], g.at.x.whole);
  return fit(g, l, std::move(dgx));
}

// groups(node, local) -> {Groups, Values}.
template <class N, class F>
void reducing(const char* name, F groups) {
  Rule rule;
  rule.save = [groups](Local& l) {
    auto& n = node<N>(l);
    auto [g, of] = groups(n, l);
    if (n.reduce == "prod" && c10::GradMode::is_enabled()) {
      reduce_by_live_product(g, of);
    } else if (n.reduce == "prod") {
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
  Groups g(std::move(at));
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
    Groups g(along(l.out_shape[0], axis, id.expand(data)));
    g.at.weight = indicator(l, in);
    Values of{{}, l.unpack(n.data_), l.unpack(n.result_)};
    if (n.initial) g.initial = n.initial->toDouble();
    return std::pair(std::move(g), std::move(of));
  });
}

}  // namespace hesse::rules
