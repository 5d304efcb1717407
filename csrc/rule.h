// A rule is what the engine knows of one autograd node. For y = f(x) with Jacobian J:
//
//     push:  dy  = J dx
//     pull:  dgx = J' dgy
//     curve: dgx = (dJ . dx)' gy        (absent: f is linear)
//
// Rules are written in the verbs of verbs.h; they see neither terms nor seeds. The sweep around them does
// accumulation, zero handling, reduction to the input's shape and casts to its dtype.
#pragma once

#include "compat.h"
#include "verbs.h"

#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace hesse {

using Tangents = std::vector<Tangent>;

struct Rule;
using RulePtr = std::shared_ptr<const Rule>;  // what uses a rule keeps it: a user may remove theirs meanwhile

// The graph itself is beyond the engine: the caller decides what to do instead. what() is the reason.
struct Unsupported : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// A backward that says of itself that it cannot be differentiated: an error, and no fallback, as plain
// autograd may take what it does not see for zero.
struct NotTwiceDifferentiable : Unsupported {
  using Unsupported::Unsupported;
};

// A rule met a sparse tensor among what its node saved; the autograd rule can do such a step.
struct SavedSparse : Unsupported {
  using Unsupported::Unsupported;
};

// A value-sized factor alpha * c; c undefined: 1. Factor{} is the constant one.
//
// A factor that selects says where the op's own backward puts a zero instead of multiplying with one: there,
// an infinity or NaN that comes back ends.
struct Factor {
  Tensor c;
  double alpha = 1.0;
  bool selects = false;
  Factor() = default;
  Factor(Tensor t) : c(std::move(t)) {}  // NOLINT: rows read better without a cast
  Factor(double a) : alpha(a) {}         // NOLINT
  bool zero() const { return !c.defined() && alpha == 0.0; }
};

Tangent scale(Tangent t, const Factor& f);
bool same(const Factor& a, const Factor& b);

struct Replay;  // see rules/replay.h

// One step as its rule sees it. What a rule unpacks or derives from the node it keeps here, once.
struct Local {
  Node* node = nullptr;
  std::vector<Shape> in_shape;   // per input; empty for an inactive one
  std::vector<bool> active;      // per input: depends on our inputs
  std::vector<bool> wanted;      // per input: pull and curve need to produce it
  std::vector<bool> used;        // per output: what lies above reads it
  std::vector<Shape> out_shape;  // per output
  std::vector<at::TensorOptions> out_options;
  std::vector<Tensor> saved;         // what `save` unpacked
  std::vector<Factor> first;         // elementwise: df/dx_i
  std::vector<Factor> second;        // elementwise: d2f/dx_i dx_j at [i * inputs + j]
  std::vector<Tensor> memo;          // values that a rule derived in one sweep and reuses in the next
  std::vector<Tensor> bent;          // the same of the adjoint gy: gone when that changes
  std::shared_ptr<const void> plan;  // what the op's arguments come down to, in the rule's own terms
  Shape batch;                       // functions of matrices: the axes before those of the matrices
  bool vectors = false;              // and whether their right-hand sides are vectors
  std::shared_ptr<Local> inner;      // CopySlices: the op that was applied in place to a view
  RulePtr inner_rule;                // ... and its rule
  std::shared_ptr<Replay> replay;    // the op computed anew in parts

  // What the autograd rule keeps of its step.
  struct {
    std::vector<Tensor> gy;                                            // the adjoint of the outputs
    bool push_loops = false, pull_loops = false, curve_loops = false;  // known not to run as a batch
    bool looped = false;  // seeds ran one after another, here or inside of an op
  } driven;

  size_t inputs() const { return active.size(); }
  c10::Device device() const;  // where the op ran: that of its outputs
  Tensor unpack(const torch::autograd::SavedVariable& v) const;
};

struct Rule {
  using Covers = std::function<bool(Local&)>;
  using Save = std::function<void(Local&)>;
  using Linear = std::function<Tangents(Local&, const Tangents&)>;
  using Curve = std::function<Tangents(Local&, const std::vector<Tensor>& gy, const Tangents& dx)>;
  using Both =
      std::function<Tangents(Local&, const std::vector<Tensor>& gy, const Tangents& dgy, const Tangents& dx)>;
  Covers covers;  // whether this node, of which nothing is unpacked yet, is the rule's; absent: always
  Save save;
  Linear push;  // one tangent per output
  Linear pull;  // one tangent per input; those not wanted are left empty (K = 0)
  Curve curve;  // likewise
  Both both;    // pull(dgy) + curve(gy, dx), of a rule that has less work with the two at once
  bool native = true;
  bool of_user = false;     // written in Python
  bool reindexes = false;   // pull only moves values: what it returns is a strided view's transpose
  bool multiplies = false;  // pull's einsum yields the input's gradient as it is
};

// Node name, such as "MulBackward0", to rule. The latest rule of a name counts, null if there is none.
void add_rule(const std::string& name, Rule rule);
RulePtr find_rule(const std::string& name);
// The same for nodes through which complex values flow, where J' is the transpose of real linear maps: it
// multiplies with the conjugate. A rule whose formulas hold there too says so by `holds_for_complex`; one
// that only reindexes always does.
void add_complex_rule(const std::string& name, Rule rule);
void holds_for_complex(const std::string& name, Rule::Covers covers = {});
RulePtr find_complex_rule(const std::string& name);
std::vector<std::string> rule_names();  // of those that are not a user's
RulePtr autograd_rule();
// A user's rule, until it is removed again. Throws std::invalid_argument where the name has a rule that this
// one may not `override`.
RulePtr add_user_rule(const std::string& name, Rule rule, bool override);
void remove_user_rule(const std::string& name, const RulePtr& rule);
// These have no rule until others are named, so that what stands in for one can be tested.
void hide_rules(const std::vector<std::string>& names);

// Whether a node is PyTorch's own: the true gradient of its forward, linear in what flows back, and without
// code of the user's.
bool is_own(const Node& node);
// Whether the node's rule, if it has one, may stand for it: it is PyTorch's own, or the rule is a user's.
bool may_have_rule(const Node& node);

// Each family registers itself; called once when the module loads.
namespace rules {
void elementwise();
void binary();
void views();
void joins();
void reductions();
void products();
void pooling();
void copy_slices();
void softmax();
void losses();
void norms();
void convolution();
void indexing();
void embeddings();
void solvers();
void decompositions();
void distances();
void resampling();
void attention();
void recurrent();
void ctc();
void complex_values();
void fourier();
Rule autograd();
}  // namespace rules
void register_rules();

}  // namespace hesse
