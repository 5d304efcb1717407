#include "combine_loops.h"

namespace hesse::kernels::cpu {

void run_baseline(const Loops<float>& loops) { run_nest(loops); }
void run_baseline(const Loops<double>& loops) { run_nest(loops); }

}  // namespace hesse::kernels::cpu
