// The backward of prelu, a node of its own where a gradient was differentiated: with m = 1 where x < 0, else
// 0,
//
//     y_0 = g (1 - m + m w),   y_1 = m g x
//
//     push   dy_0 = (1 - m + m w) dg + m g dw,     dy_1 = m x dg + m g dx
//     pull   dgg  = (1 - m + m w) dgy_0 + m x dgy_1,   dgx = m g dgy_1,   dgw = m g dgy_0
//     curve  dgg  = m (gy_1 dx + gy_0 dw),             dgx = m gy_1 dg,   dgw = m gy_0 dg
#include "factors.h"

namespace hesse::rules {

namespace {

using N = gen::PreluKernelBackwardBackward0;

// sum += f t; what is zero is not computed.
void add(Tangent& sum, const Tangent& t, const Tensor& f) {
  if (t.zero()) return;
  Tangent part = select(t, f);
  if (sum.K == 0) {
    sum = std::move(part);
  } else {
    accumulate(sum, std::move(part));
  }
}

// saved: 1 - m + m w, m x, m g, m; bent: m gy_0, m gy_1.
void save(Local& l) {
  auto& n = node<N>(l);
  const Tensor x = l.unpack(n.self_), m = indicator(l, x < 0);
  l.saved = {{}, {}, {}, m};
  if (l.active[0]) {
    l.saved[0] = at::where(x < 0, l.unpack(n.weight_), 1);
    l.saved[1] = x * m;
  }
  if (l.active[1] || l.active[2]) l.saved[2] = l.unpack(n.grad_output_) * m;
}

}  // namespace

void prelu_backward() {
  Rule rule;
  rule.save = save;
  rule.push = [](Local& l, const Tangents& dx) {
    Tangents dy(2);
    add(dy[0], dx[0], l.saved[0]);
    add(dy[0], dx[2], l.saved[2]);
    add(dy[1], dx[0], l.saved[1]);
    add(dy[1], dx[1], l.saved[2]);
    return dy;
  };
  rule.pull = [](Local& l, const Tangents& dgy) {
    Tangents dgx(3);
    if (l.wanted[0]) {
      add(dgx[0], dgy[0], l.saved[0]);
      add(dgx[0], dgy[1], l.saved[1]);
    }
    if (l.wanted[1]) add(dgx[1], dgy[1], l.saved[2]);
    if (l.wanted[2]) add(dgx[2], dgy[0], l.saved[2]);
    return dgx;
  };
  rule.curve = [](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
    if (l.bent.empty()) {
      for (const Tensor& g : gy) l.bent.push_back(g.defined() ? g * l.saved[3] : Tensor());
    }
    const Tensor &by_w = l.bent[0], &by_x = l.bent[1];
    Tangents dgx(3);
    if (by_x.defined()) {
      if (l.wanted[0]) add(dgx[0], dx[1], by_x);
      if (l.wanted[1]) add(dgx[1], dx[0], by_x);
    }
    if (by_w.defined()) {
      if (l.wanted[0]) add(dgx[0], dx[2], by_w);
      if (l.wanted[2]) add(dgx[2], dx[0], by_w);
    }
    return dgx;
  };
  add_rule("PreluKernelBackwardBackward0", std::move(rule));
}

}  // namespace hesse::rules
