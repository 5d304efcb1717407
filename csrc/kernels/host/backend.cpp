#include "kernels/host/backend.h"

#include "kernels/bodies/combine.h"
#include "kernels/bodies/scatter.h"
#include "kernels/bodies/triangles.h"
#include "kernels/bodies/write_sum.h"
#include "kernels/host/grid.h"

namespace hesse::kernels::host {

namespace {

Grid grid;

}  // namespace

const Backend backend{
    nullptr,
    [](Type) { return true; },
    true,
    [](const Pass& pass, c10::Device) { combine(grid, pass); },
    [](const Sum& sum, c10::Device) { write_sum(grid, sum, [](const Pass& pass) { combine(grid, pass); }); },
    [](const Scatter& scatter, c10::Device) { return scatter_add(grid, scatter); },
    [](void* m, int64_t n, int word, c10::Device) { mirror_upper(grid, m, n, word); },
    [](const Packing& packing, c10::Device) { pack_lower(grid, packing); },
    [](int64_t) -> int64_t { return 128; },
};

}  // namespace hesse::kernels::host
