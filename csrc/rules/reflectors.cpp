#include "matrices.h"
namespace hesse::rules {
void reflectors() {}
void matrix_exponential() {}
void multilinear() {}
}  // namespace hesse::rules
