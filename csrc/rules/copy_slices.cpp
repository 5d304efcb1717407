// In-place operations on views, and in-place copies. PyTorch records x[view].op_() as one CopySlices node:
//
//     y = x outside of the view,    y[view] = op(x[view], others)
//
// The rule of `op` is used as it is, between a strided view and its transpose.
#include "elementwise.h"
#include "shapes.h"

#include <torch/csrc/autograd/functions/tensor.h>

namespace hesse::rules {

namespace {

using torch::autograd::CopySlices;

Geometry view_of(Local& l) {
  auto& n = node<CopySlices>(l);
  return {ints(n.view.sym_sizes()), ints(n.view.sym_strides()),
          n.view.sym_storage_offset().expect_int() - n.base.sym_storage_offset().expect_int()};
}

// The view's strides are those of the base's values only if the base is contiguous.
bool expressible(Local& l) {
  auto& n = node<CopySlices>(l);
  return is_row_major(ints(n.base.sym_sizes()), ints(n.base.sym_strides()));
}

// The op on the view, as its own rule sees it.
Local inner_of(Local& l) {
  Local inner = l;
  inner.node = node<CopySlices>(l).fn.get();
  inner.in_shape[0] = view_of(l).size;
  inner.out_shape = {inner.in_shape[0]};
  return inner;
}

bool covers(Local& l) {
  if (!node<CopySlices>(l).fn || !expressible(l)) return false;
  Local inner = inner_of(l);
  const RulePtr rule = find_rule(inner.node->name());
  return rule && (!rule->covers || rule->covers(inner));
}

void save(Local& l) {
  const Geometry g = view_of(l);
  l.inner = std::make_shared<Local>(inner_of(l));
  l.inner_rule = find_rule(l.inner->node->name());
  if (!l.inner_rule) throw Unsupported("the rule of " + l.inner->node->name() + " was removed meanwhile");
  if (l.inner_rule->save) l.inner_rule->save(*l.inner);
  Tensor outside = at::ones(l.out_shape[0], l.out_options[0].requires_grad(std::nullopt));
  outside.as_strided(g.size, g.stride, g.offset).zero_();
  l.memo = {outside};
}

Tangents on_view(Local& l, const Tangents& dx) {
  Tangents in = dx;
  if (l.active[0] && !dx[0].zero()) {
    in[0] = take(dx[0], view_of(l));
  } else {
    in[0].shape = l.inner->in_shape[0];
  }
  return in;
}

Tangents push(Local& l, const Tangents& dx) {
  Tangents dv = l.inner_rule->push(*l.inner, on_view(l, dx));
  Tangent dy = zero_like(dv[0], l.out_shape[0]);
  dy.options = l.out_options[0];
  if (!dx[0].zero()) dy = select(dx[0], l.memo[0]);
  if (!dv[0].zero()) {
    dv[0] = cast(expand(std::move(dv[0]), l.inner->out_shape[0]), dy.options.dtype().toScalarType());
    accumulate(dy, put(std::move(dv[0]), view_of(l), l.out_shape[0]));
  }
  return {std::move(dy)};
}

// The op's gradient for the view, back on the base.
void place_view(Local& l, Tangent& dg0) {
  if (dg0.zero()) return;
  if (dg0.shape != l.inner->in_shape[0]) dg0 = sum_to(std::move(dg0), l.inner->in_shape[0]);
  dg0 = put(std::move(dg0), view_of(l), l.in_shape[0]);
}

Tangents pull(Local& l, const Tangents& dgy) {
  l.inner->wanted = l.wanted;
  Tangents dgx = l.inner_rule->pull(*l.inner, {take(dgy[0], view_of(l))});
  if (l.wanted[0]) {
    place_view(l, dgx[0]);
    Tangent kept = select(dgy[0], l.memo[0]);
    accumulate(kept, std::move(dgx[0]));
    dgx[0] = std::move(kept);
  }
  return dgx;
}

Tangents curve(Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
  const Rule& rule = *l.inner_rule;
  if (!rule.curve) return Tangents(l.inputs());
  l.inner->wanted = l.wanted;
  const Geometry g = view_of(l);
  const Tensor full = gy[0].contiguous();
  const Tensor gv = full.as_strided(g.size, g.stride, full.storage_offset() + g.offset);
  Tangents dgx = rule.curve(*l.inner, {gv}, on_view(l, dx));
  if (l.wanted[0]) place_view(l, dgx[0]);
  return dgx;
}

}  // namespace

void copy_slices() {
  {
    Rule rule;
    rule.covers = covers;
    rule.save = save;
    rule.push = push;
    rule.pull = pull;
    rule.curve = curve;
    add_rule("torch::autograd::CopySlices", rule);
  }
  {
    // y.copy_(x): what y held before is gone.
    Rule rule;
    rule.push = [](Local& l, const Tangents& dx) -> Tangents {
      if (dx[1].zero()) return {zero_like(dx[0].zero() ? dx[1] : dx[0], l.out_shape[0])};
      return {expand(dx[1], l.out_shape[0])};
    };
    rule.pull = [](Local& l, const Tangents& dgy) {
      Tangents dgx(l.inputs());
      if (l.wanted[1]) dgx[1] = sum_to(dgy[0], l.in_shape[1]);
      return dgx;
    };
    add_rule("torch::autograd::CopyBackwards", rule);
  }
}

}  // namespace hesse::rules
