// Index ops: elements picked, written or added at places given by an index tensor.
#include "rule.h"

namespace hesse::rules {

void indexing() {}

}  // namespace hesse::rules
