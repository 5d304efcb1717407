#include "rule.h"

#include "scopes.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/functions/tensor.h>
#include <torch/csrc/autograd/generated/Functions.h>

#include <map>
#include <set>
#include <string_view>
#include <typeinfo>

namespace hesse {

namespace {
using Table = std::map<std::string, Rule>;
Table& table() {
  static Table rules;
  return rules;
}
Table& complex_table() {
  static Table rules;
  return rules;
}
const Rule* find(const Table& rules, const std::string& name) {
  const auto it = rules.find(name);
  return it == rules.end() ? nullptr : &it->second;
}
}  // namespace

Tangent scale(Tangent t, const Factor& f) {
  if (f.zero()) return zero_like(t, t.shape);
  if (f.c.defined()) t = f.selects ? select(std::move(t), f.c) : scale(std::move(t), f.c);
  return f.alpha == 1.0 ? t : scale(std::move(t), f.alpha);
}

bool same(const Factor& a, const Factor& b) {
  return a.alpha == b.alpha && a.selects == b.selects && same_factor(a.c, b.c);
}

Tensor Local::unpack(const torch::autograd::SavedVariable& v) const {
  auto unpacked = [&] { return v.unpack(share(*node)); };
  Tensor t;
  if (v.has_hooks()) {
    const AutogradScope scope(true);  // the hook may run Python, or recompute a checkpointed region
    t = unpacked();
  } else {
    t = unpacked();
  }
  if (!t.defined()) return t;
  if (t.layout() != at::kStrided) throw SavedSparse(node->name() + " saved a sparse tensor");
  // What forward-mode AD saves where there is no tangent has no memory; the imaginary part of a conjugate is
  // a view whose memory has the other sign.
  if (t._is_zerotensor()) return at::zeros(t.sizes(), t.options());
  if (t.is_conj()) t = t.resolve_conj();
  return t.is_neg() ? t.resolve_neg() : t;
}

void add_rule(const std::string& name, Rule rule) { table()[name] = std::move(rule); }

const Rule* find_rule(const std::string& name) { return find(table(), name); }

void add_complex_rule(const std::string& name, Rule rule) { complex_table()[name] = std::move(rule); }
void holds_for_complex(const std::string& name, Rule::Covers covers) {
  Rule rule = table().at(name);
  if (covers) rule.covers = std::move(covers);
  add_complex_rule(name, std::move(rule));
}
const Rule* find_complex_rule(const std::string& name) {
  const Rule* rule = find(complex_table(), name);
  if (rule) return rule;
  rule = find_rule(name);
  return rule && rule->reindexes ? rule : nullptr;
}

std::vector<std::string> rule_names() {
  std::set<std::string> names;
  for (const Table* rules : {&table(), &complex_table()}) {
    for (const auto& entry : *rules) names.insert(entry.first);
  }
  return {names.begin(), names.end()};
}

const Rule& autograd_rule() {
  static const Rule rule = rules::autograd();
  return rule;
}

namespace {

// A write through a view that names an element twice keeps one of two values, but its backward sends the
// gradient to both.
bool writes_twice(const Node& node) {
  using torch::autograd::CopySlices;
  using torch::autograd::generated::AsStridedScatterBackward0;
  Geometry g;
  auto fill = [&g](c10::SymIntArrayRef size, c10::SymIntArrayRef stride) {
    for (const c10::SymInt& n : size) g.size.push_back(n.expect_int());
    for (const c10::SymInt& n : stride) g.stride.push_back(n.expect_int());
  };
  if (typeid(node) == typeid(CopySlices)) {
    const auto& slices = static_cast<const CopySlices&>(node);
    fill(slices.view.sym_sizes(), slices.view.sym_strides());
  } else if (typeid(node) == typeid(AsStridedScatterBackward0)) {
    const auto& scatter = static_cast<const AsStridedScatterBackward0&>(node);
    fill(scatter.size, scatter.stride);
  }
  return overlaps(g);
}

}  // namespace

// All that derivatives.yaml generates lies in one namespace, whose mangled name is the start of a node's; the
// hand-written nodes that carry gradients are named one by one. Any other is a user's (a custom Function of
// Python or C++, an op of torch.library) or may not be differentiable at all.
bool is_own(const Node& node) {
  using torch::autograd::CopyBackwards;
  using torch::autograd::CopySlices;
  if (writes_twice(node)) return false;
  const std::type_info& type = typeid(node);
  if (type == typeid(CopySlices)) {
    const auto& fn = static_cast<const CopySlices&>(node).fn;  // what was done in place; null once released
    return !fn || is_own(*fn);
  }
  return type == typeid(CopyBackwards) ||
         std::string_view(type.name()).starts_with("N5torch8autograd9generated");
}

void register_rules() {
  rules::elementwise();
  rules::binary();
  rules::views();
  rules::joins();
  rules::reductions();
  rules::copy_slices();
  rules::products();
  rules::softmax();
  rules::losses();
  rules::norms();
  rules::convolution();
  rules::indexing();
  rules::embeddings();
  rules::solvers();
  rules::decompositions();
  rules::distances();
  rules::resampling();
  rules::attention();
  rules::recurrent();
  rules::ctc();
  rules::complex_values();
  rules::fourier();
  rules::pooling();
}

}  // namespace hesse
