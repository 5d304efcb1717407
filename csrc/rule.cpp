#include "rule.h"

#include "scopes.h"
#include "streams.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/functions/tensor.h>
#include <torch/csrc/autograd/generated/Functions.h>

#include <algorithm>
#include <map>
#include <mutex>
#include <set>
#include <shared_mutex>
#include <string_view>
#include <typeinfo>
#include <unordered_map>

namespace hesse {

namespace {

using Table = std::unordered_map<std::string, RulePtr>;

// Never destroyed: the rules of a user hold Python objects, and Python may be gone at exit.
struct Tables {
  Table real, complex;                               // complete once the module is loaded
  std::map<std::string, std::vector<RulePtr>> user;  // the latest last
  std::set<std::string> hidden;
  std::shared_mutex mutex;  // users register theirs at any time
};
Tables& tables() {
  static Tables& t = *new Tables;
  return t;
}

RulePtr find(const Table& rules, const std::string& name) {
  const auto it = rules.find(name);
  return it == rules.end() ? nullptr : it->second;
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

c10::Device Local::device() const {
  for (size_t o = 0; o < out_options.size(); ++o) {
    if (used[o]) return out_options[o].device();
  }
  return out_options.empty() ? c10::Device(at::kCPU) : out_options[0].device();
}

namespace {

// A tensor of the host's without axes may take part in the op of a device, as a number does, but not with the
// axes that rules give it. Its value goes along with a launch: nobody waits.
Tensor on_device(const Tensor& t, c10::Device device) {
  if (t.dim() > 0 || !t.is_cpu() || device.is_cpu()) return t;
  if (t.unsafeGetTensorImpl()->is_wrapped_number() && !t.is_complex()) return t;  // for `number` to read
  if (c10::GradMode::is_enabled()) return t.to(device, /*non_blocking=*/true);
  return at::empty({}, t.options().device(device)).fill_(t);
}

}  // namespace

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
  keep_for_current_stream(t, *node);
  if (t.layout() != at::kStrided) throw SavedSparse(node->name() + " saved a sparse tensor");
  // What forward-mode AD saves where there is no tangent has no memory; the imaginary part of a conjugate is
  // a view whose memory has the other sign.
  if (t._is_zerotensor()) return at::zeros(t.sizes(), t.options());
  if (t.is_conj()) t = t.resolve_conj();
  if (t.is_neg()) t = t.resolve_neg();
  return on_device(t, device());
}

void add_rule(const std::string& name, Rule rule) {
  tables().real[name] = std::make_shared<const Rule>(std::move(rule));
}

RulePtr find_rule(const std::string& name) {
  const std::shared_lock lock(tables().mutex);
  if (!tables().hidden.empty() && tables().hidden.count(name)) return nullptr;
  const auto it = tables().user.empty() ? tables().user.end() : tables().user.find(name);
  return it == tables().user.end() ? find(tables().real, name) : it->second.back();
}

void add_complex_rule(const std::string& name, Rule rule) {
  tables().complex[name] = std::make_shared<const Rule>(std::move(rule));
}

void holds_for_complex(const std::string& name, Rule::Covers covers) {
  Rule rule = *tables().real.at(name);
  if (covers) rule.covers = std::move(covers);
  add_complex_rule(name, std::move(rule));
}

RulePtr find_complex_rule(const std::string& name) {
  const std::shared_lock lock(tables().mutex);
  if (tables().hidden.count(name)) return nullptr;
  if (tables().user.count(name)) return nullptr;  // users' rules are of real values
  RulePtr rule = find(tables().complex, name);
  if (rule) return rule;
  rule = find(tables().real, name);
  return rule && rule->reindexes ? rule : nullptr;
}

std::vector<std::string> rule_names() {
  std::set<std::string> names;
  for (const Table* rules : {&tables().real, &tables().complex}) {
    for (const auto& entry : *rules) names.insert(entry.first);
  }
  return {names.begin(), names.end()};
}

RulePtr autograd_rule() {
  static const RulePtr rule = std::make_shared<const Rule>(rules::autograd());
  return rule;
}

RulePtr add_user_rule(const std::string& name, Rule rule, bool override) {
  auto added = std::make_shared<const Rule>(std::move(rule));
  const std::unique_lock lock(tables().mutex);
  const bool before = tables().user.count(name) > 0;
  if (!override && (before || find(tables().real, name) || find(tables().complex, name))) {
    throw std::invalid_argument(name + " has a rule" +
                                (before ? " that was registered before" : " of hesse's own"));
  }
  tables().user[name].push_back(added);
  return added;
}

void remove_user_rule(const std::string& name, const RulePtr& rule) {
  const std::unique_lock lock(tables().mutex);
  const auto it = tables().user.find(name);
  if (it == tables().user.end()) return;
  auto& rules = it->second;
  rules.erase(std::remove(rules.begin(), rules.end(), rule), rules.end());  // `rule` itself lives on
  if (rules.empty()) tables().user.erase(it);
}

void hide_rules(const std::vector<std::string>& names) {
  const std::unique_lock lock(tables().mutex);
  tables().hidden = {names.begin(), names.end()};
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

bool may_have_rule(const Node& node) {
  if (is_own(node)) return true;
  if (writes_twice(node)) return false;
  const Node* acting = &node;
  if (typeid(node) == typeid(torch::autograd::CopySlices)) {
    acting = static_cast<const torch::autograd::CopySlices&>(node).fn.get();
  }
  const RulePtr rule = acting ? find_rule(acting->name()) : nullptr;
  return rule && rule->of_user;
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
