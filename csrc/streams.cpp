#include "streams.h"

#include <ATen/ATen.h>
#include <c10/core/Event.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <optional>
#include <vector>

namespace hesse {

namespace {

struct Streams {
  c10::Stream own, current;
};

// Of the first output on a device; none where the two are one.
std::optional<Streams> other_stream(const Node& node) {
  for (uint32_t o = 0; o < node.num_inputs(); ++o) {
    const auto& meta = node.input_metadata(o);
    if (meta.was_default_constructed() || meta.device().is_cpu() || meta.device().is_meta()) continue;
    const c10::Stream own = meta.stream();
    const c10::Stream current = c10::impl::VirtualGuardImpl(own.device_type()).getStream(own.device());
    return own == current ? std::nullopt : std::make_optional(Streams{own, current});
  }
  return std::nullopt;
}

}  // namespace

void join_streams(const Graph& graph) {
  std::vector<c10::Stream> joined;
  for (const Step& step : graph.steps) {
    const auto streams = other_stream(*step.node);
    if (!streams || std::find(joined.begin(), joined.end(), streams->own) != joined.end()) continue;
    c10::Event done(streams->own.device_type());
    done.record(streams->own);
    done.block(streams->current);
    joined.push_back(streams->own);
  }
}

void keep_for_current_stream(const Tensor& t, const Node& node) {
  if (t.is_cpu() || t.is_meta()) return;
  if (const auto streams = other_stream(node)) t.record_stream(streams->current);
}

}  // namespace hesse
