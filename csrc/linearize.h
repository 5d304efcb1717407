// One reverse sweep over a recorded graph: the adjoint of every step that has curvature, and on demand the
// gradient. `func` is never run again: all later products read what is kept here.
#pragma once

#include "graph.h"
#include "scopes.h"

#include <utility>

namespace hesse {

struct Linearization {
  Graph graph;
  std::vector<Tensor> inputs;  // kept alive: their edges bound the graph
  std::vector<Tensor> outputs;
  std::vector<Tensor> seeds;                  // one per output
  std::vector<Local> locals;                  // one per step
  std::vector<std::vector<Tensor>> adjoints;  // per step and output; defined where the step is curved
  bool create_graph = false;
  std::vector<Tensor> gradient;  // one per input where it was asked for; undefined: no output depends on it
  std::vector<std::pair<Tensor, uint32_t>> read;  // what later sweeps read, in which version
};

// seeds empty: one output with one element, seed 1; undefined seeds: no adjoints yet. With `keep` it is for
// many questions: the gradient falls out of the same sweep, and `check_unchanged` can tell what was changed
// since.
Linearization linearize(std::vector<Tensor> outputs, std::vector<Tensor> inputs, std::vector<Tensor> seeds,
                        bool create_graph, bool keep = false);
// Throws where a tensor that a sweep would read was changed in place.
void check_unchanged(const Linearization& lin);
// Makes the adjoints those at other seeds.
void seed(Linearization& lin, std::vector<Tensor> seeds);
// The adjoints at some seeds and what rules have derived from them, to go back to.
struct Seeding {
  std::vector<std::vector<Tensor>> adjoints, bent, inner_bent;  // per step
};
// Puts the adjoints and all that belongs to them in the place of those of one step, or of all; called again,
// it puts them back.
void exchange(Linearization& lin, Seeding& seeding, size_t step);
void exchange(Linearization& lin, Seeding& seeding);
// One for each of the seeds.
std::vector<Seeding> seedings_of(Linearization& lin, const std::vector<std::vector<Tensor>>& seeds);
// One tensor per input; undefined where no output depends on it.
std::vector<Tensor> gradient(Linearization& lin);

// Reduces, casts and moves what a rule returned to the slot it flows into.
Tangent conform(Tangent t, const Slot& slot);

}  // namespace hesse
