#include "graph.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <map>
#include <set>
#include <unordered_map>

namespace hesse {

namespace {

using Key = std::pair<Node*, uint32_t>;

const torch::autograd::InputMetadata& checked(const Node& node, uint32_t i) {
  const auto& meta = node.input_metadata(i);
  const std::string at = " at " + node.name();
  if (meta.is_tensor_subclass()) throw Unsupported("a tensor subclass flows through the graph" + at);
  if (meta.is_nested_tensor()) throw Unsupported("a nested tensor flows through the graph" + at);
  if (meta.layout() != at::kStrided) throw Unsupported("a sparse tensor flows through the graph" + at);
  return meta;
}

Slot slot_of(const torch::autograd::InputMetadata& meta) {
  Slot slot;
  const auto sizes = meta.shape_as_dim_vector();
  for (const c10::SymInt& s : sizes) slot.shape.push_back(s.expect_int());
  slot.options = meta.options();
  return slot;
}

void refuse_hooks(Node& node) {
  if (!node.pre_hooks().empty() || !node.tensor_pre_hooks().empty() || !node.post_hooks().empty()) {
    throw Unsupported("a hook on " + node.name() + " may change its gradient");
  }
}

bool any_complex(const Graph& graph, const std::vector<int>& slots) {
  return std::any_of(slots.begin(), slots.end(), [&graph](int s) {
    return s >= 0 && c10::isComplexType(graph.slots[s].options.dtype().toScalarType());
  });
}

// The rule of the node's name where it covers this node, else the autograd rule.
RulePtr rule_of(const Graph& graph, const Step& step) {
  const bool complex = any_complex(graph, step.in) || any_complex(graph, step.out);
  RulePtr rule = complex ? find_complex_rule(step.name) : find_rule(step.name);
  if (rule && rule->covers) {
    Local local = local_of(graph, step);
    if (!rule->covers(local)) rule = nullptr;
  }
  return rule ? rule : autograd_rule();
}

}  // namespace

Local local_of(const Graph& graph, const Step& step) {
  Local local;
  local.node = step.node.get();
  for (int i : step.in) {
    local.active.push_back(i >= 0);
    local.in_shape.push_back(i >= 0 ? graph.slots[i].shape : Shape{});
  }
  local.wanted = local.active;
  for (int o : step.out) {
    local.out_shape.push_back(o >= 0 ? graph.slots[o].shape : Shape{});
    local.out_options.push_back(o >= 0 ? graph.slots[o].options : at::TensorOptions());
    local.used.push_back(o >= 0 && graph.slots[o].used);
  }
  return local;
}

Graph build_graph(const std::vector<Tensor>& outputs, const std::vector<Tensor>& inputs) {
  Graph graph;
  std::map<Key, int> slot_at;
  std::map<Key, int> input_at;
  for (size_t i = 0; i < inputs.size(); ++i) {
    const auto edge = torch::autograd::impl::gradient_edge(inputs[i]);
    TORCH_CHECK(edge.function, "hesse: input ", i, " does not require grad");
    input_at[{edge.function.get(), edge.input_nr}] = static_cast<int>(i);
  }
  graph.inputs.assign(inputs.size(), -1);

  auto touch_input = [&](const Key& key, int i) {
    if (graph.inputs[i] >= 0) return;
    if (!key.first->tensor_pre_hooks().empty()) {
      throw Unsupported("a hook on input " + std::to_string(i) + " may change its gradient");
    }
    Slot slot;
    slot.shape = Shape(inputs[i].sizes().begin(), inputs[i].sizes().end());
    slot.options = inputs[i].options().requires_grad(std::nullopt);
    graph.inputs[i] = static_cast<int>(graph.slots.size());
    slot_at[key] = graph.inputs[i];
    graph.slots.push_back(std::move(slot));
  };

  // Depth first, iteratively: a node is active when one of its edges reaches an input or an active node.
  struct Frame {
    Node* node;
    size_t next;
  };
  std::unordered_map<Node*, bool> active;
  std::vector<Frame> stack;
  std::vector<Node*> order;
  auto visit = [&](Node* root) {
    if (!root || active.count(root)) return;
    active[root] = false;
    stack.push_back({root, 0});
    while (!stack.empty()) {
      Frame& frame = stack.back();
      Node* node = frame.node;
      if (frame.next < node->num_outputs()) {
        const auto& edge = node->next_edge(frame.next++);
        if (!edge.is_valid()) continue;
        const Key key{edge.function.get(), edge.input_nr};
        const auto input = input_at.find(key);
        if (input != input_at.end()) {
          touch_input(key, input->second);
          active[node] = true;
        } else if (!active.count(key.first)) {
          active[key.first] = false;
          stack.push_back({key.first, 0});
        }
        continue;
      }
      for (const auto& edge : node->next_edges()) {
        if (!edge.is_valid() || input_at.count({edge.function.get(), edge.input_nr})) continue;
        if (active[edge.function.get()]) active[node] = true;
      }
      if (active[node]) order.push_back(node);
      stack.pop_back();
    }
  };

  std::vector<Key> roots;
  for (size_t o = 0; o < outputs.size(); ++o) {
    roots.emplace_back(nullptr, 0);
    if (!outputs[o].requires_grad()) continue;
    const auto edge = torch::autograd::impl::gradient_edge(outputs[o]);
    roots.back() = {edge.function.get(), edge.input_nr};
    const auto input = input_at.find(roots.back());
    if (input != input_at.end()) {
      touch_input(roots.back(), input->second);
    } else {
      visit(edge.function.get());
    }
  }

  std::set<Key> used(roots.begin(), roots.end());  // of several outputs: a single one always is
  for (Node* node : order) {
    for (const auto& edge : node->next_edges()) {
      if (edge.is_valid() && edge.function->num_inputs() > 1)
        used.insert({edge.function.get(), edge.input_nr});
    }
  }
  for (Node* node : order) {
    refuse_hooks(*node);
    TORCH_CHECK(
        node->name() != "CompiledFunctionBackward",
        "hesse: func calls a function that torch.compile has compiled, which records a first derivative "
        "and no second one. Call the function that was compiled.");
    if (node->name() == "CheckpointFunctionBackward") {
      throw Unsupported("reentrant checkpointing only works inside PyTorch's own backward pass");
    }
    Step step;
    step.node = share(*node);
    step.name = node->name();
    bool curved_below = false;
    for (const auto& edge : node->next_edges()) {
      int slot = -1;
      if (edge.is_valid()) {
        const auto it = slot_at.find({edge.function.get(), edge.input_nr});
        if (it != slot_at.end()) slot = it->second;
      }
      step.in.push_back(slot);
      if (slot < 0) continue;
      curved_below = curved_below || graph.slots[slot].curved_below;
    }
    for (uint32_t o = 0; o < node->num_inputs(); ++o) {
      const auto& meta = node->input_metadata(o);
      if (meta.was_default_constructed()) {
        step.out.push_back(-1);
        continue;
      }
      Slot slot = slot_of(checked(*node, o));
      slot.used = node->num_inputs() == 1 || used.count({node, o}) > 0;
      step.out.push_back(static_cast<int>(graph.slots.size()));
      slot_at[{node, o}] = step.out.back();
      graph.slots.push_back(std::move(slot));
    }
    step.rule = may_have_rule(*node) ? rule_of(graph, step) : autograd_rule();
    graph.symmetric = graph.symmetric && (step.rule->native || is_own(*node));
    curved_below = curved_below || step.rule->curve;
    for (int o : step.out) {
      if (o >= 0) graph.slots[o].curved_below = curved_below;
    }
    graph.steps.push_back(std::move(step));
  }
  for (auto step = graph.steps.rbegin(); step != graph.steps.rend(); ++step) {
    bool curved = static_cast<bool>(step->rule->curve);
    for (int o : step->out) curved = curved || (o >= 0 && graph.slots[o].curved_above);
    for (int i : step->in) {
      if (i >= 0 && curved) graph.slots[i].curved_above = true;
    }
  }
  for (const Key& root : roots) {
    const auto it = slot_at.find(root);
    graph.outputs.push_back(it == slot_at.end() ? -1 : it->second);
  }
  return graph;
}

}  // namespace hesse
