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
    if (!dx[1].zero()) {
      accumulate(dy, scale(unpick(w.at, cast(dx[1], dtype_of(l))), w.alpha));
    }
    return {std::move(dy)};
  };
  rule.pull = [](Local& l, const Tangents& dgy) {
    const auto& w = plan<Write>(l);
    Tangents dgx(2);
    if (l.wanted[0]) dgx[0] = w.keep.defined() ? select(dgy[0], w.keep) : dgy[0];
    if (l.wanted[1]) dgx[1] = fitted_back(scale(pick(w.at, dgy[0]), w.alpha), l.in_shape[1]);
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

// A number or a tensor of one element, written.
template <class N, class F>
void filling(const char* name, F at) {
  elementwise_linear<N>(name, [at](auto& n, Local& l) {
    const Tensor keep = untouched(at(n, l), constants(l));
    l.first[0] = selecting(keep);
    if (l.inputs() > 1) l.first[1] = selecting(at::rsub(keep, 1));
  });
}

// Indices for several axes. `values` is the shape of what is picked or written there: it tells how many
// places a lone condition has.
template <class N>
Picks several_of(N& n, Local& l, const Shape& x, const Shape& values, bool broadcast) {
  const auto indices = unpacked(l, n.indices_);
  std::optional<int64_t> count;
  if (const auto at = lone_mask(indices)) {
    const size_t behind = x.size() - *at - static_cast<size_t>(indices[*at].dim());
    const int64_t size = values.size() > behind ? values[values.size() - 1 - behind] : 1;
    if (size != 1 || !broadcast) count = size;
  }
  return several(x, indices, l.out_options[0].device(), count);
}

template <class N>
void putting(const char* name) {
  writing<N>(name, [](auto& n, Local& l) {
    return put_at(l, several_of(n, l, l.out_shape[0], ints(n.values_info.sym_sizes), true), n.accumulate);
  });
}

}  // namespace

void indexing() {
  group_reductions();
  // ---- picked -------------------------------------------------------------------------------------------
  const auto by_several = [](auto& n, Local& l) {
    return several_of(n, l, l.in_shape[0], l.out_shape[0], false);
  };
  picking<gen::IndexBackward0>("IndexBackward0", by_several);
  picking<gen::UnsafeIndexBackward0>("UnsafeIndexBackward0", by_several);
  picking<gen::UnsafeMaskedIndexBackward0>("UnsafeMaskedIndexBackward0", [](auto& n, Local& l) {
    Picks p = several_of(n, l, l.in_shape[0], l.out_shape[0], false);
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
  writing<gen::UnsafeMaskedIndexPutAccumulateBackward0>(
      "UnsafeMaskedIndexPutAccumulateBackward0", [](auto& n, Local& l) {
        return added(l, [&] {
          Picks p = several_of(n, l, l.out_shape[0], {}, true);
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
