// The part of the autograd graph that lies between the inputs and the outputs.
//
// Steps are autograd nodes in topological order, inputs first; slots are the values that flow between them
// (the inputs, and every output of an active node). Only nodes on a path from an input are kept.
#pragma once

#include "compat.h"
#include "rule.h"

#include <string>
#include <vector>

namespace hesse {

struct Slot {
  Shape shape;
  at::TensorOptions options;
  // Structure, filled by the graph:
  bool curved_below = false;  // a step with curvature lies between the inputs and this value
  bool curved_above = false;  // ... between this value and the outputs
  bool used = false;          // a step or one of our outputs reads it
};

struct Step {
  NodePtr node;
  RulePtr rule;  // the node's own where there is one and it covers the node
  std::string name;
  std::vector<int> in;   // slot of each input of the op, -1: does not depend on our inputs
  std::vector<int> out;  // slot of each output, -1: unused
};

struct Graph {
  std::vector<Slot> slots;
  std::vector<Step> steps;
  std::vector<int> inputs;   // slot of each input (-1: no output depends on it)
  std::vector<int> outputs;  // slot of each output (-1: depends on no input)
  bool symmetric = true;     // every active node is the gradient of its forward, as PyTorch's own are
};

Graph build_graph(const std::vector<Tensor>& outputs, const std::vector<Tensor>& inputs);
// What a step's rule is to see, of which nothing is unpacked yet.
Local local_of(const Graph& graph, const Step& step);

}  // namespace hesse
