// Embedding tables, bags of them, and reductions of segments.
#include "rule.h"

namespace hesse::rules {

void embeddings() {}

}  // namespace hesse::rules
