#include "combine_loops.h"

namespace hesse::kernels::cpu {

void run_avx2(const Loops<float>& loops) { run_nest(loops); }
void run_avx2(const Loops<double>& loops) { run_nest(loops); }

}  // namespace hesse::kernels::cpu
