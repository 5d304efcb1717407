// Matrix decompositions.
#include "matrices.h"
namespace hesse::rules {
void decompositions() { reflectors(); }
}  // namespace hesse::rules
