// Streams of a device in which func ran its ops, where that is not the current one, in which the engine runs.
#pragma once

#include "graph.h"

namespace hesse {

// Makes the current stream wait for what was queued in those of the graph's steps: func need not have joined
// them, as autograd's own engine goes back to them.
void join_streams(const Graph& graph);
// Keeps the memory of a tensor, which a node has saved, for what the current stream does with it.
void keep_for_current_stream(const Tensor& t, const Node& node);

}  // namespace hesse
