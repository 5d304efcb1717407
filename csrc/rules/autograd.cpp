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
//
// All three are linear in the tangent, so its seeds run at once under vmap where PyTorch can (`run`).
#include "batched.h"
#include "ledger.h"
#include "rows.h"
#include "rule.h"
#include "scopes.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/autograd.h>
#include <torch/csrc/autograd/engine.h>
#include <torch/csrc/autograd/functions/basic_ops.h>
#include <torch/csrc/autograd/functions/utils.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <map>
#include <set>
#include <typeinfo>
#include <unordered_map>
#include <unordered_set>

namespace hesse::rules {

namespace {

using torch::autograd::variable_list;
using Key = std::pair<Node*, uint32_t>;

// What such a node means is for plain autograd to say: a constant gradient (a user may detach one on
// purpose), or an error.
[[noreturn]] void not_twice_differentiable(const Node& node, const std::string& why) {
  throw Unsupported(node.name() + " is not twice differentiable: " + why +
                    " (hesse.register_rule can give it a rule)");
}

variable_list call(Node& node, variable_list grads) {
  variable_list out = node(std::move(grads));
  torch::autograd::validate_outputs(node.next_edges(), out, [&node](const std::string& msg) {
    return "Function " + node.name() + " returned an " + msg;
  });
  return out;
}

// The recorded backward of the node: cotangents g and b(g).
struct Recorded {
  variable_list g;
  variable_list b;
  std::vector<Key> inputs, outputs;  // the node's own edges
  std::set<Key> stops;               // what lies beyond them, and beyond g, is not b's
};

// Contiguous from the start of its memory: some backwards read strided views that count from there.
Tensor from_start(const Tensor& t) {
  const Tensor c = t.contiguous();
  return c.storage_offset() == 0 ? c : c.clone();
}

// `gy`: the cotangents to record at; zeros for those undefined, as b is linear (a user's may not be, nor may
// it take zeros for what they stand for, so that the adjoint of the step is known for those).
Recorded record(Local& l, const std::vector<Tensor>& gy, bool in_g) {
  Recorded r;
  for (size_t o = 0; o < l.out_shape.size(); ++o) {
    Tensor g;
    if (o < gy.size() && gy[o].defined()) {
      g = from_start(gy[o]).alias();
    } else if (in_g && l.used[o]) {
      g = at::zeros(l.out_shape[o], l.out_options[o].requires_grad(std::nullopt));
    }
    if (in_g && g.defined() && !g.requires_grad()) g.requires_grad_(true);
    r.g.push_back(std::move(g));
  }
  try {
    r.b = call(*l.node, r.g);
  } catch (const c10::NotImplementedError& e) {
    not_twice_differentiable(*l.node, e.what_without_backtrace());
  }
  for (const auto& edge : l.node->next_edges()) {
    r.inputs.emplace_back(edge.function.get(), edge.input_nr);
    if (edge.is_valid()) r.stops.insert(r.inputs.back());
  }
  for (size_t o = 0; o < r.g.size(); ++o) {
    r.outputs.emplace_back(l.node, static_cast<uint32_t>(o));
    r.stops.insert(r.outputs.back());
    if (!r.g[o].defined() || !r.g[o].requires_grad()) continue;
    const auto edge = torch::autograd::impl::gradient_edge(r.g[o]);
    r.stops.emplace(edge.function.get(), edge.input_nr);
  }
  return r;
}

// The nodes between b and the stops, those next to the stops first.
std::vector<Node*> nodes_of(const Recorded& r) {
  std::vector<Node*> order;
  std::unordered_set<Node*> seen;
  std::vector<std::pair<Node*, size_t>> stack;
  auto visit = [&](const torch::autograd::Edge& edge) {
    if (edge.is_valid() && !r.stops.count({edge.function.get(), edge.input_nr}) &&
        seen.insert(edge.function.get()).second) {
      stack.emplace_back(edge.function.get(), 0);
    }
  };
  for (const Tensor& root : r.b) {
    if (!root.defined() || !root.requires_grad()) continue;
    visit(torch::autograd::impl::gradient_edge(root));
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
  return order;
}

// Drops the nodes that do not lead to the op's own edges; false when b itself does not.
bool keep_curved(const Recorded& r, std::vector<Node*>& nodes) {
  std::set<Key> own(r.inputs.begin(), r.inputs.end());
  own.insert(r.outputs.begin(), r.outputs.end());
  std::unordered_set<Node*> leads;
  auto reaches = [&](const torch::autograd::Edge& edge) {
    return edge.is_valid() && (r.stops.count({edge.function.get(), edge.input_nr})
                                   ? own.count({edge.function.get(), edge.input_nr})
                                   : leads.count(edge.function.get()));
  };
  auto idle = [&](Node* node) {
    const bool any = std::any_of(node->next_edges().begin(), node->next_edges().end(), reaches);
    if (any) leads.insert(node);
    return !any;
  };
  nodes.erase(std::remove_if(nodes.begin(), nodes.end(), idle), nodes.end());
  return std::any_of(r.b.begin(), r.b.end(), [&](const Tensor& b) {
    return b.defined() && b.requires_grad() && reaches(torch::autograd::impl::gradient_edge(b));
  });
}

// Gradients of sum_i <b_i, cotangents_i> at the stops.
std::map<Key, Tensor> walk(const Recorded& r, const std::vector<Node*>& nodes,
                           const variable_list& cotangents) {
  std::map<Key, Tensor> found;
  std::unordered_map<Node*, variable_list> buffers;
  auto add = [](Tensor& sum, const Tensor& t) { sum = sum.defined() ? sum + t : t; };
  auto deposit = [&](const torch::autograd::Edge& edge, const Tensor& grad) {
    if (!edge.is_valid() || !grad.defined()) return;
    const Key key{edge.function.get(), edge.input_nr};
    if (r.stops.count(key)) {
      add(found[key], grad);
      return;
    }
    variable_list& buffer = buffers[edge.function.get()];
    if (buffer.empty()) buffer.resize(edge.function->num_inputs());
    add(buffer[edge.input_nr], grad);
  };
  for (size_t i = 0; i < r.b.size(); ++i) {
    if (!r.b[i].defined() || !r.b[i].requires_grad()) continue;
    deposit(torch::autograd::impl::gradient_edge(r.b[i]), cotangents[i]);
  }
  for (auto node = nodes.rbegin(); node != nodes.rend(); ++node) {
    const auto buffer = buffers.find(*node);
    if (buffer == buffers.end()) continue;
    variable_list out = call(**node, std::move(buffer->second));
    for (size_t i = 0; i < out.size(); ++i) deposit((*node)->next_edge(i), out[i]);
  }
  return found;
}

// What a verb does with one seed: slices of its tangents in, one tensor per output (undefined: zero) out.
struct Body {
  SeedFunction f;
  const std::vector<Shape>& out_shape;
  std::vector<bool> wanted;  // per output
  bool own;                  // runs nodes of PyTorch's own only
  bool& loops;               // remembered of the step: does not run as a batch
  bool& looped;              // told of the step
};

variable_list one_by_one(const SeedFunction& f, const variable_list& rows, int64_t begin, int64_t end) {
  std::vector<variable_list> stacks;
  for (int64_t k = begin; k < end; ++k) {
    variable_list slice;
    for (const Tensor& r : rows) slice.push_back(r.defined() ? from_start(r.select(0, k)) : r);
    const variable_list out = f(slice);
    stacks.resize(std::max(stacks.size(), out.size()));
    for (size_t o = 0; o < out.size(); ++o) {
      if (out[o].defined()) stacks[o].push_back(out[o]);
    }
  }
  variable_list stacked;
  for (const variable_list& stack : stacks) stacked.push_back(stack.empty() ? Tensor() : at::stack(stack));
  return stacked;
}

// Bytes of values that run at once: the temporaries of a backward are a few times that, and stay in cache.
constexpr int64_t kBatchBytes = int64_t{4} << 20;

variable_list at_once(const Body& body, const variable_list& rows, int64_t seeds, int64_t bytes_per_seed) {
  const int64_t step = std::clamp<int64_t>(kBatchBytes / std::max<int64_t>(bytes_per_seed, 1), 1, seeds);
  std::vector<variable_list> parts;
  for (int64_t k = 0; k < seeds; k += step) {
    const int64_t n = std::min(step, seeds - k);
    if (n == 1) {
      parts.push_back(one_by_one(body.f, rows, k, k + 1));
      continue;
    }
    variable_list part;
    for (const Tensor& r : rows) part.push_back(r.defined() ? r.narrow(0, k, n) : r);
    Batched out = batched(body.f, part);
    body.looped = body.looped || out.looped;
    parts.push_back(std::move(out.rows));
  }
  variable_list joined;
  for (size_t o = 0; o < parts[0].size(); ++o) {
    variable_list pieces;
    for (const variable_list& part : parts) {
      if (part[o].defined()) pieces.push_back(part[o]);
    }
    joined.push_back(pieces.size() > 1 ? at::cat(pieces)
                     : pieces.empty()  ? Tensor()
                                       : pieces[0].contiguous());
  }
  return joined;
}

// The seeds of `rows` through the body. Only PyTorch's own nodes run under vmap: what their formulas cannot
// do with a batch, they refuse. A user's backward sees plain tensors, one seed at a time, as in stock's loop:
// it may count its calls, keep what it gets, or hand a pointer to code that knows nothing of batches.
// (torch.func asks for a user's consent too: `generate_vmap_rule`.)
//
// A step that was refused once is not tried again. With grad mode on, the ops inside of a batched one are
// recorded as any others: what vmap adds is views and ops that autograd knows.
variable_list run(const Body& body, const variable_list& rows, int64_t seeds, int64_t bytes_per_seed) {
  if (seeds > 1 && body.own && !body.loops) {
    try {
      return at_once(body, rows, seeds, bytes_per_seed);
    } catch (const Unsupported&) {
      throw;
    } catch (const std::exception& e) {  // an error of the op itself, the loop meets again
      const auto* error = dynamic_cast<const c10::Error*>(&e);
      if ((error && is_out_of_memory(*error)) || !forget_python_error()) throw;
      body.loops = true;
    }
  }
  body.looped = body.looped || seeds > 1;
  return one_by_one(body.f, rows, 0, seeds);
}

// Applies the body to the seeds of several tangents.
Tangents per_seed(const Tangents& in, const Body& body) {
  return on_rows(in, body.out_shape, body.wanted,
                 [&body](const variable_list& rows, int64_t seeds, int64_t bytes_per_seed) {
                   return run(body, rows, seeds, bytes_per_seed);
                 });
}

// What `once_differentiable` puts over a backward raises when it is run. Nothing behind it leads to the op's
// own edges, so that no walk comes by, and a constant would be taken for the gradient.
void refuse_once_differentiable(const Node& node, const std::vector<Node*>& nodes) {
  if (std::any_of(nodes.begin(), nodes.end(),
                  [](const Node* n) { return typeid(*n) == typeid(torch::autograd::Error); })) {
    throw NotTwiceDifferentiable("hesse: " + node.name() +
                                 " is not twice differentiable: its backward is marked once_differentiable. "
                                 "Write it in differentiable operations, or give it a rule with "
                                 "hesse.register_rule.");
  }
}

bool all_own(const std::vector<Node*>& nodes) {
  return std::all_of(nodes.begin(), nodes.end(), [](Node* n) { return n->num_outputs() == 0 || is_own(*n); });
}

Tangents push(Local& l, const Tangents& dx) {
  const bool create_graph = c10::GradMode::is_enabled();
  const AutogradScope scope(true);
  const Recorded r = record(l, is_own(*l.node) ? variable_list() : l.driven.gy, /*in_g=*/true);
  const std::vector<Node*> nodes = nodes_of(r);
  refuse_once_differentiable(*l.node, nodes);
  const c10::AutoGradMode mode(create_graph);
  variable_list inputs;
  std::vector<size_t> out_index;
  std::vector<bool> wanted(l.out_shape.size());
  for (size_t o = 0; o < r.g.size(); ++o) {
    wanted[o] = r.g[o].defined();
    if (!wanted[o]) continue;
    inputs.push_back(r.g[o]);
    out_index.push_back(o);
  }
  auto vjp_in_g = [&](const variable_list& slice) {
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
                                                      create_graph, /*allow_unused=*/true);
    for (size_t o = 0; o < grads.size(); ++o) dy[out_index[o]] = grads[o];
    return dy;
  };
  return per_seed(dx, {vjp_in_g, l.out_shape, wanted, all_own(nodes), l.driven.push_loops, l.driven.looped});
}

Tangents pull(Local& l, const Tangents& dgy) {
  const AutogradScope scope(c10::GradMode::is_enabled());
  auto b = [&](const variable_list& slice) { return call(*l.node, slice); };
  return per_seed(dgy, {b, l.in_shape, l.wanted, is_own(*l.node), l.driven.pull_loops, l.driven.looped});
}

Tangents curve(Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
  const bool create_graph = c10::GradMode::is_enabled();
  const AutogradScope scope(true);
  const Recorded r = record(l, gy, /*in_g=*/false);
  const c10::AutoGradMode mode(create_graph);
  std::vector<Node*> nodes = nodes_of(r);
  refuse_once_differentiable(*l.node, nodes);
  if (!keep_curved(r, nodes)) return Tangents(l.inputs());  // the op is linear
  auto vjp_in_x = [&](const variable_list& slice) {
    variable_list cotangents(r.b.size());
    for (size_t i = 0; i < slice.size() && i < r.b.size(); ++i) {
      if (slice[i].defined() && r.b[i].defined()) cotangents[i] = slice[i].to(r.b[i].scalar_type());
    }
    std::map<Key, Tensor> found = walk(r, nodes, cotangents);
    // A saved output leads back through the op itself.
    variable_list through, dgx(l.inputs());
    bool any = false;
    for (const Key& key : r.outputs) {
      through.push_back(found[key]);
      any = any || through.back().defined();
    }
    if (any) dgx = call(*l.node, through);
    dgx.resize(l.inputs());
    for (size_t i = 0; i < l.inputs(); ++i) {
      Tensor& total = found[r.inputs[i]];
      if (!total.defined()) continue;
      dgx[i] = dgx[i].defined() ? dgx[i] + total : total;
      total = Tensor();  // two inputs may be the same edge: its total counts once
    }
    return dgx;
  };
  return per_seed(dx, {vjp_in_x, l.in_shape, l.wanted, is_own(*l.node) && all_own(nodes),
                       l.driven.curve_loops, l.driven.looped});
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
