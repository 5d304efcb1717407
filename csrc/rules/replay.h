// The rule of a fused op that is computed anew in parts: its forward, written in ops that have rules of their
// own, is recorded from what the node saved, and tangents go through that graph as through any other. Nothing
// but the forward is written down, whatever order of derivative is asked for.
#pragma once

#include "elementwise.h"

namespace hesse::rules {

// The op's inputs, one for each edge of the node; undefined where there is none.
using ReplayInputs = std::function<std::vector<Tensor>(Local&)>;
// Its outputs from them. Those that nothing uses may be left out.
using ReplayForward = std::function<std::vector<Tensor>(Local&, const std::vector<Tensor>& x)>;

Rule replayed(ReplayInputs inputs, ReplayForward forward);

}  // namespace hesse::rules
