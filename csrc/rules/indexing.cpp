// Index ops: linear maps that move values to or from places given by an index tensor (see picks.h).
//
//     picking   y = pick(x)
//     writing   y = keep o x + alpha unpick(v),   keep: 0 where a value is replaced, 1 where one is added
//
// Where one place is written twice, one value wins, but PyTorch's backward sends the gradient to both: that
// is the transpose of adding both, and so are these.
#include "picks.h"

#include "factors.h"
#include "shapes.h"

namespace hesse::rules {

namespace {

template <class S>
std::vector<Tensor> unpacked(Local& l, const S& saved) {
  std::vector<Tensor> list;
  for (const auto& s : saved) list.push_back(l.unpack(s));
  return list;
}

at::TensorOptions constants(const Local& l) { return l.out_options[0].requires_grad(std::nullopt); }

// ---- picking ------------------------------------------------------------------------------------------

// picks(node, local) -> Picks from the input to the output.
template <class N, class F>
void picking(const char* name, F picks) {
  Rule rule;
  rule.save = [picks](Local& l) { l.plan = std::make_shared<Picks>(picks(node<N>(l), l)); };
  rule.push = [](Local& l, const Tangents& dx) -> Tangents { return {pick(plan<Picks>(l), dx[0])}; };
  rule.pull = [](Local& l, const Tangents& dgy) -> Tangents { return {unpick(plan<Picks>(l), dgy[0])}; };
  add_rule(name, std::move(rule));
}

// ---- writing ------------------------------------------------------------------------------------------

struct Write {
  Picks at;  // of what is written, in the output
  Tensor keep;
  double alpha = 1.0;
  Tensor holds = {};  // instead of `at`: 1 where the same is written for all, in the shape `row`, else 0
  Shape row = {};

  Tangent put(Tangent t, const Shape& y) const {
    if (!holds.defined()) return scale(unpick(at, std::move(t)), alpha);
    return select(expand(view(std::move(t), row), y), holds);
  }
  Tangent taken(const Tangent& t, const Shape& x) const {
    if (!holds.defined()) return fitted_back(scale(pick(at, t), alpha), x);
    return view(sum_to(select(t, holds), row), x);
  }
};

// write(node, local) -> Write. Inputs: the value written into, and what is written.
template <class N, class F>
void writing(const char* name, F write) {
  Rule rule;
  rule.save = [write](Local& l) { l.plan = std::make_shared<Write>(write(node<N>(l), l)); };
  rule.push = [](Local& l, const Tangents& dx) -> Tangents {
    const auto& w = plan<Write>(l);
    Tangent dy = zero_like(dx[0].zero() ? dx[1] : dx[0], l.out_shape[0]);
    dy.options = constants(l);
    if (!dx[0].zero()) {
      Tangent t = expand(cast(dx[0], dtype_of(l)), l.out_shape[0]);
      accumulate(dy, w.keep.defined() ? select(std::move(t), w.keep) : std::move(t));
    }
    if (!dx[1].zero()) accumulate(dy, w.put(cast(dx[1], dtype_of(l)), l.out_shape[0]));
    return {std::move(dy)};
  };
  rule.pull = [](Local& l, const Tangents& dgy) {
    const auto& w = plan<Write>(l);
    Tangents dgx(2);
    if (l.wanted[0]) dgx[0] = w.keep.defined() ? select(dgy[0], w.keep) : dgy[0];
    if (l.wanted[1]) dgx[1] = w.taken(dgy[0], l.in_shape[1]);
    return dgx;
  };
  add_rule(name, std::move(rule));
}

Write replaced(Local& l, Picks at) {
  Tensor keep = untouched(at, constants(l));
  return {std::move(at), std::move(keep)};
}
// The index of what is added is saved for that alone.
template <class F>
Write added(Local& l, F at, double alpha = 1.0) {
  return {l.active[1] ? at() : flat({}, {}, at::zeros({}, at::kLong)), {}, alpha};
}
Write put_at(Local& l, Picks at, bool accumulate) {
  return accumulate ? Write{std::move(at), {}} : replaced(l, std::move(at));
}

// One value or row for all places where a lone condition on axes from `axis` on holds: which ones these are,
// the host need not know.
Write put_where(Local& l, const Tensor& condition, size_t axis, const Shape& values, bool accumulate) {
  const Shape& y = l.out_shape[0];
  const auto axes = static_cast<size_t>(condition.dim());
  const size_t behind = y.size() - axis - axes;
  Shape line(condition.sizes().begin(), condition.sizes().end()), row = values;
  line.resize(axes + behind, 1);
  if (values.size() > behind) {  // its axis of places is the condition's axes
    row = Shape(values.begin(), values.end() - static_cast<std::ptrdiff_t>(behind) - 1);
    row.append(axes, 1);
    row.append(values.end() - static_cast<std::ptrdiff_t>(behind), values.end());
  }
  const Tensor holds = condition.reshape(line).ne(0);
  Tensor keep = accumulate ? Tensor() : indicator(l, holds.logical_not());
  return {flat({}, {}, at::zeros({}, at::kLong)), std::move(keep), 1.0, indicator(l, holds), std::move(row)};
}

// A number or a tensor of one element, written.
template <class N, class F>
void filling(const char* name, F at) {
  elementwise_linear<N>(name, [at](auto& n, Local& l) {
    const Tensor keep = untouched(at(n, l), constants(l));
    l.first[0] = selecting(keep);
    if (l.inputs() > 1) l.first[1] = selecting(at::rsub(keep, 1));
  });
}

// How many places a lone condition has, told by the shape of what is picked or written there. Of what is
// written, 1 may stand for any.
std::optional<int64_t> places_of(const std::vector<Tensor>& indices, const Shape& x, const Shape& values) {
  const auto at = lone_mask(indices);
  if (!at) return std::nullopt;
  const size_t behind = x.size() - *at - static_cast<size_t>(indices[*at].dim());
  return values.size() > behind ? values[values.size() - 1 - behind] : 1;
}

// Indices for several axes; `values` is the shape of what is picked or written there.
template <class N>
Picks several_of(N& n, Local& l, const Shape& x, const Shape& values) {
  const auto indices = unpacked(l, n.indices_);
  return several(x, indices, l.device(), places_of(indices, x, values));
}

template <class N>
void putting(const char* name) {
  writing<N>(name, [](auto& n, Local& l) {
    const auto indices = unpacked(l, n.indices_);
    const Shape values = ints(n.values_info.sym_sizes);
    const auto count = places_of(indices, l.out_shape[0], values);
    if (count == 1) {
      const size_t axis = *lone_mask(indices);
      return put_where(l, indices[axis], axis, values, n.accumulate);
    }
    return put_at(l, several(l.out_shape[0], indices, l.device(), count), n.accumulate);
  });
}

}  // namespace

void indexing() {
  group_reductions();
  // ---- picked -------------------------------------------------------------------------------------------
  const auto by_several = [](auto& n, Local& l) { return several_of(n, l, l.in_shape[0], l.out_shape[0]); };
  picking<gen::IndexBackward0>("IndexBackward0", by_several);
  picking<gen::UnsafeIndexBackward0>("UnsafeIndexBackward0", by_several);
  picking<gen::UnsafeMaskedIndexBackward0>("UnsafeMaskedIndexBackward0", [](auto& n, Local& l) {
    Picks p = several_of(n, l, l.in_shape[0], l.out_shape[0]);
    p.weight = indicator(l, l.unpack(n.mask_));
    return p;
  });
  picking<gen::IndexSelectBackward0>("IndexSelectBackward0", [](auto& n, Local& l) {
    return along_vector(l.in_shape[0], n.dim, l.unpack(n.index_));
  });
  picking<gen::GatherBackward0>(
      "GatherBackward0", [](auto& n, Local& l) { return along(l.in_shape[0], n.dim, l.unpack(n.index_)); });
  picking<gen::TakeBackward0>("TakeBackward0", [](auto& n, Local& l) {
    return flat(l.in_shape[0], l.out_shape[0], l.unpack(n.index_));
  });
  picking<gen::MaskedSelectBackward0>("MaskedSelectBackward0", [](auto& n, Local& l) {
    return where(l.in_shape[0], l.unpack(n.mask_), l.out_shape[0][0]);
  });

  // ---- written ------------------------------------------------------------------------------------------
  const auto along_axis = [](auto& n, Local& l) { return along(l.out_shape[0], n.dim, l.unpack(n.index_)); };
  const auto along_axis_vector = [](auto& n, Local& l) {
    return along_vector(l.out_shape[0], n.dim, l.unpack(n.index_));
  };
  writing<gen::ScatterBackward0>("ScatterBackward0",
                                 [along_axis](auto& n, Local& l) { return replaced(l, along_axis(n, l)); });
  writing<gen::ScatterAddBackward0>("ScatterAddBackward0", [along_axis](auto& n, Local& l) {
    return added(l, [&] { return along_axis(n, l); });
  });
  writing<gen::IndexCopyBackward0>("IndexCopyBackward0", [along_axis_vector](auto& n, Local& l) {
    return replaced(l, along_axis_vector(n, l));
  });
  writing<gen::IndexAddBackward0>("IndexAddBackward0", [along_axis_vector](auto& n, Local& l) {
    return added(l, [&] { return along_axis_vector(n, l); }, n.alpha.toDouble());
  });
  filling<gen::ScatterBackward1>("ScatterBackward1", along_axis);
  filling<gen::IndexFillBackward0>("IndexFillBackward0", along_axis_vector);
  filling<gen::IndexFillBackward1>("IndexFillBackward1", along_axis_vector);
  putting<gen::IndexPutBackward0>("IndexPutBackward0");
  putting<gen::UnsafeIndexPutBackward0>("UnsafeIndexPutBackward0");
  putting<gen::IndexPutImplBackward0>("IndexPutImplBackward0");
  writing<gen::PutBackward0>("PutBackward0", [](auto& n, Local& l) {
    const Tensor index = l.unpack(n.index_);
    const Shape places(index.sizes().begin(), index.sizes().end());
    return put_at(l, flat(l.out_shape[0], places, index), n.accumulate);
  });
  writing<gen::UnsafeMaskedIndexPutAccumulateBackward0>("UnsafeMaskedIndexPutAccumulateBackward0",
                                                        [](auto& n, Local& l) {
                                                          return added(l, [&] {
                                                            Picks p = several_of(n, l, l.out_shape[0], {});
                                                            p.weight = indicator(l, l.unpack(n.mask_));
                                                            return p;
                                                          });
                                                        });
  {
    // The elements of the source, in order, go where the mask holds.
    using N = gen::MaskedScatterBackward0;
    struct Ranked {
      Picks at;  // of the output, in the source
      Tensor keep;
    };
    Rule rule;
    rule.save = [](Local& l) {
      auto& n = node<N>(l);
      const Shape& y = l.out_shape[0];
      const Tensor mask = l.unpack(n.mask_).expand(y);
      const Shape source = ints(n.source_sym_sizes);
      const Tensor rank =
          (mask.reshape({-1}).cumsum(0) - 1).clamp(0, std::max<int64_t>(numel_of(source) - 1, 0));
      Ranked r{flat(source, y, rank), indicator(l, mask.logical_not())};
      r.at.weight = indicator(l, mask);
      l.plan = std::make_shared<Ranked>(std::move(r));
    };
    rule.push = [](Local& l, const Tangents& dx) -> Tangents {
      const auto& r = plan<Ranked>(l);
      Tangent dy = zero_like(dx[0].zero() ? dx[1] : dx[0], l.out_shape[0]);
      dy.options = constants(l);
      if (!dx[0].zero()) {
        accumulate(dy, select(expand(cast(dx[0], dtype_of(l)), l.out_shape[0]), r.keep));
      }
      if (!dx[1].zero()) accumulate(dy, pick(r.at, cast(dx[1], dtype_of(l))));
      return {std::move(dy)};
    };
    rule.pull = [](Local& l, const Tangents& dgy) {
      const auto& r = plan<Ranked>(l);
      Tangents dgx(2);
      if (l.wanted[0]) dgx[0] = select(dgy[0], r.keep);
      if (l.wanted[1]) dgx[1] = unpick(r.at, dgy[0]);
      return dgx;
    };
    add_rule("MaskedScatterBackward0", rule);
  }
}

}  // namespace hesse::rules
