// The autograd rule drives a node that has no rule of its own. With b(g) = node(g), the vector-Jacobian
// product that PyTorch wrote, recorded with grad mode on:
//
//     pull(dgy)     = b(dgy)
//     push(dx)      = vjp of b in g, with cotangents dx          (b is linear in g)
//     curve(gy, dx) = vjp of b(gy) in the op's inputs, with cotangents dx
//
// The last holds because the Hessian of <gy, f> is symmetric; where a user's backward is not the Jacobian of
// its forward, it yields the rows that the reverse-mode loop would. The inner walk is our own, not the
// engine's: it stops at the node's own input edges (an input that depends on another is not followed
// through).
#include "rule.h"

#include "ledger.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <map>
#include <unordered_map>
#include <unordered_set>

namespace hesse::rules {

namespace {

using torch::autograd::variable_list;
using Key = std::pair<Node*, uint32_t>;

// What such a node means is for plain autograd to say: a constant gradient, or an error of its own.
[[noreturn]] void not_twice_differentiable(const Node& node, const std::string& why) {
  throw Unsupported(node.name() + " is not twice differentiable: " + why);
}

variable_list call(Node& node, variable_list grads) {
  variable_list out = node(std::move(grads));
  torch::autograd::validate_outputs(node.next_edges(), out, [&node](const std::string& msg) {
    return "hesse: " + node.name() + " returned an invalid gradient: " + msg;
  });
  return out;
}

// Gradients of sum_o <roots_o, cotangents_o> at the edges `stops`, following the graph no further than them.
std::map<Key, Tensor> walk(const variable_list& roots, const variable_list& cotangents,
                           const std::vector<Key>& stops) {
  std::map<Key, Tensor> found;
  for (const Key& stop : stops) found[stop];
  std::unordered_map<Node*, variable_list> buffers;
  auto add = [](Tensor& sum, const Tensor& t) { sum = sum.defined() ? sum + t : t; };
  auto deposit = [&](const torch::autograd::Edge& edge, const Tensor& grad) {
    if (!edge.is_valid() || !grad.defined()) return;
    const auto stop = found.find({edge.function.get(), edge.input_nr});
    if (stop != found.end()) {
      add(stop->second, grad);
      return;
    }
    variable_list& buffer = buffers[edge.function.get()];
    if (buffer.empty()) buffer.resize(edge.function->num_inputs());
    add(buffer[edge.input_nr], grad);
  };

  // Topological order of what lies above the stops.
  std::vector<Node*> order;
  std::unordered_set<Node*> seen;
  std::vector<std::pair<Node*, size_t>> stack;
  auto visit = [&](const torch::autograd::Edge& edge) {
    if (edge.is_valid() && !found.count({edge.function.get(), edge.input_nr}) &&
        seen.insert(edge.function.get()).second) {
      stack.emplace_back(edge.function.get(), 0);
    }
  };
  for (size_t o = 0; o < roots.size(); ++o) {
    if (!roots[o].defined() || !roots[o].requires_grad() || !cotangents[o].defined()) continue;
    visit(torch::autograd::impl::gradient_edge(roots[o]));
    while (!stack.empty()) {
      auto& [node, next] = stack.back();
      if (next < node->num_outputs()) {
        visit(node->next_edge(next++));
      } else {
        order.push_back(node);
        stack.pop_back();
      }
    }
  }
  for (size_t o = 0; o < roots.size(); ++o) {
    if (!roots[o].defined() || !roots[o].requires_grad()) continue;
    deposit(torch::autograd::impl::gradient_edge(roots[o]), cotangents[o]);
  }
  for (auto node = order.rbegin(); node != order.rend(); ++node) {
    const auto buffer = buffers.find(*node);
    if (buffer == buffers.end() || (*node)->num_outputs() == 0) continue;  // a leaf that nobody asked for
    variable_list out = call(**node, std::move(buffer->second));
    for (size_t i = 0; i < out.size(); ++i) deposit((*node)->next_edge(i), out[i]);
  }
  return found;
}

// Contiguous from the start of its memory: some backwards read strided views that count from there.
Tensor from_start(const Tensor& t) {
  const Tensor c = t.contiguous();
  return c.storage_offset() == 0 ? c : c.clone();
}

// The recorded backward of the node: fresh cotangents g and b(g).
struct Recorded {
  variable_list g;
  variable_list b;
};

Recorded record(Local& l, const std::vector<Tensor>& gy) {
  Recorded r;
  for (size_t o = 0; o < l.out_shape.size(); ++o) {
    Tensor g;
    if (!gy.empty()) {
      if (gy[o].defined()) g = from_start(gy[o]).alias();
    } else if (l.out_options[o].has_dtype()) {
      g = at::zeros(l.out_shape[o], l.out_options[o].requires_grad(std::nullopt)).requires_grad_(true);
    }
    r.g.push_back(std::move(g));
  }
  try {
    r.b = call(*l.node, r.g);
  } catch (const c10::NotImplementedError& e) {
    not_twice_differentiable(*l.node, e.what_without_backtrace());
  }
  return r;
}

// Applies f to each seed's slice of several tangents; results are stacked per output.
Tangents per_seed(const Tangents& in, const std::vector<Shape>& out_shape,
                  const std::function<variable_list(const variable_list&)>& f) {
  int64_t first = INT64_MAX, last = 0, K = 0;
  at::TensorOptions options;
  for (const Tangent& t : in) {
    K = std::max(K, t.K);
    if (t.zero()) continue;
    const auto [a, b] = seed_range(t);
    first = std::min(first, a);
    last = std::max(last, b);
    options = t.options;
  }
  if (K > 1) ledger().densified.insert(ledger().op);
  variable_list rows;
  for (const Tangent& t : in) rows.push_back(t.zero() ? Tensor() : dense(t, first, last));
  std::vector<variable_list> stacks(out_shape.size());
  for (int64_t k = first; k < last; ++k) {
    variable_list slice;
    for (const Tensor& r : rows) slice.push_back(r.defined() ? from_start(r.select(0, k - first)) : Tensor());
    const variable_list out = f(slice);
    for (size_t o = 0; o < out_shape.size(); ++o) {
      if (o < out.size() && out[o].defined()) stacks[o].push_back(out[o]);
    }
  }
  Tangents result;
  for (size_t o = 0; o < out_shape.size(); ++o) {
    if (stacks[o].empty()) {
      result.emplace_back();
      result.back().K = K;
      result.back().shape = out_shape[o];
      result.back().options = options;
      continue;
    }
    result.push_back(from_dense(at::stack(stacks[o]), K, first));
    ledger().reserve(static_cast<int64_t>(stacks[o].size()) * stacks[o][0].numel(),
                     stacks[o][0].element_size());
  }
  return result;
}

Tangents push(Local& l, const Tangents& dx) {
  const AutogradScope scope(true);
  const Recorded r = record(l, {});
  variable_list inputs, outputs;
  std::vector<size_t> out_index;
  for (size_t o = 0; o < r.g.size(); ++o) {
    if (!r.g[o].defined()) continue;
    inputs.push_back(r.g[o]);
    out_index.push_back(o);
  }
  const bool differentiable = c10::GradMode::is_enabled();
  return per_seed(dx, l.out_shape, [&](const variable_list& slice) {
    variable_list roots, cotangents, dy(l.out_shape.size());
    for (size_t i = 0; i < slice.size() && i < r.b.size(); ++i) {
      if (!slice[i].defined() || !r.b[i].defined()) continue;
      if (!r.b[i].requires_grad())
        not_twice_differentiable(*l.node, "its backward is not recorded by autograd");
      roots.push_back(r.b[i]);
      cotangents.push_back(slice[i].to(r.b[i].scalar_type()));
    }
    if (roots.empty()) return dy;
    const variable_list grads = torch::autograd::grad(roots, inputs, cotangents, /*retain_graph=*/true,
                                                      differentiable, /*allow_unused=*/true);
    for (size_t o = 0; o < grads.size(); ++o) dy[out_index[o]] = grads[o];
    return dy;
  });
}

Tangents pull(Local& l, const Tangents& dgy) {
  const AutogradScope scope(c10::GradMode::is_enabled());
  Tangents dgx = per_seed(dgy, l.in_shape, [&](const variable_list& slice) { return call(*l.node, slice); });
  return dgx;
}

Tangents curve(Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
  const AutogradScope scope(true);
  const Recorded r = record(l, gy);
  std::vector<Key> stops, own_inputs, own_outputs;
  for (size_t i = 0; i < l.inputs(); ++i) {
    const auto& edge = l.node->next_edge(i);
    own_inputs.emplace_back(edge.function.get(), edge.input_nr);
    if (edge.is_valid()) stops.push_back(own_inputs.back());
  }
  for (size_t o = 0; o < r.g.size(); ++o) {
    own_outputs.emplace_back(l.node, static_cast<uint32_t>(o));
    stops.push_back(own_outputs.back());
    if (r.g[o].defined() && r.g[o].requires_grad()) {
      const auto edge = torch::autograd::impl::gradient_edge(r.g[o]);
      stops.emplace_back(edge.function.get(), edge.input_nr);
    }
  }
  return per_seed(dx, l.in_shape, [&](const variable_list& slice) {
    variable_list cotangents(r.b.size());
    for (size_t i = 0; i < slice.size() && i < r.b.size(); ++i) {
      if (slice[i].defined() && r.b[i].defined()) cotangents[i] = slice[i].to(r.b[i].scalar_type());
    }
    const auto found = walk(r.b, cotangents, stops);
    // A saved output leads back through the op itself.
    variable_list through, dgx(l.inputs());
    bool any = false;
    for (const Key& key : own_outputs) {
      through.push_back(found.at(key));
      any = any || through.back().defined();
    }
    if (any) dgx = call(*l.node, through);
    dgx.resize(l.inputs());
    std::map<Key, bool> taken;  // two inputs may be the same edge: its total counts once
    for (size_t i = 0; i < l.inputs(); ++i) {
      const auto it = found.find(own_inputs[i]);
      if (it == found.end() || !it->second.defined() || taken[own_inputs[i]]) continue;
      taken[own_inputs[i]] = true;
      dgx[i] = dgx[i].defined() ? dgx[i] + it->second : it->second;
    }
    return dgx;
  });
}

}  // namespace

Rule autograd() {
  Rule rule;
  rule.push = push;
  rule.pull = pull;
  rule.curve = curve;
  rule.native = false;
  return rule;
}

}  // namespace hesse::rules
