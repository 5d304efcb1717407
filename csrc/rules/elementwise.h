// The elementwise class: y = f(x_1, ..., x_n) element by element, with broadcasting. A row gives the first
// partials df/dx_i and the second partials d2f/dx_i dx_j; everything else is generic:
//
//     push   dy    = sum_i f_i dx_i
//     pull   dgx_i = f_i dgy
//     curve  dgx_i = sum_j gy f_ij dx_j
#pragma once

#include "rule.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/generated/Functions.h>

namespace hesse::rules {

namespace gen = torch::autograd::generated;

// The node behind a local, as its generated struct.
template <class N>
N& node(Local& l) {
  return static_cast<N&>(*l.node);
}

// Lays large factors out for fast loops; equal ones stay one tensor.
void lengthen_loops(std::vector<Factor>& factors);

Tangents elementwise_push(Local& l, const Tangents& dx);
Tangents elementwise_pull(Local& l, const Tangents& dgy);
Tangents elementwise_curve(Local& l, const std::vector<Tensor>& gy, const Tangents& dx);

// An elementwise op that is linear in all its inputs. first(node, local) sets l.first.
template <class N, class First>
void elementwise_linear(const char* name, First first) {
  Rule rule;
  rule.save = [first](Local& l) {
    l.first.assign(l.inputs(), Factor(0.0));
    first(node<N>(l), l);
    lengthen_loops(l.first);
  };
  rule.push = elementwise_push;
  rule.pull = elementwise_pull;
  add_rule(name, std::move(rule));
}

// An elementwise op of any number of inputs. first(node, local) unpacks into l.saved and sets l.first[i];
// second(node, local) sets l.second[i * inputs + j], both halves (l.first is there to reuse). `second` runs
// once, when a curvature is first asked for.
template <class N, class First, class Second>
void elementwise(const char* name, First first, Second second) {
  elementwise_linear<N>(name, first);
  Rule rule = *find_rule(name);
  rule.curve = [second](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
    if (l.second.empty()) {
      l.second.assign(l.inputs() * l.inputs(), Factor(0.0));
      second(node<N>(l), l);
    }
    return elementwise_curve(l, gy, dx);
  };
  add_rule(name, std::move(rule));
}

// One input. save(node, local) -> the tensor s that the derivatives are written in (x or y); d1(node, s) ->
// f'; d2(node, s, d1) -> f''. Each of d1, d2 returns a Tensor or a number.
template <class N, class Save, class D1, class D2>
void unary(const char* name, Save save, D1 d1, D2 d2) {
  elementwise<N>(
      name,
      [save, d1](N& n, Local& l) {
        l.saved = {save(n, l)};
        l.first[0] = d1(n, l.saved[0]);
      },
      [d2](N& n, Local& l) { l.second[0] = d2(n, l.saved[0], l.first[0].c); });
}

// One input, piecewise linear: f'' is zero.
template <class N, class Save, class D1>
void unary_linear(const char* name, Save save, D1 d1) {
  elementwise_linear<N>(name, [save, d1](N& n, Local& l) {
    l.saved = {save(n, l)};
    l.first[0] = d1(n, l.saved[0]);
  });
}

// Zero on purpose: floor, sign, comparisons.
void zero(const char* name);

}  // namespace hesse::rules
