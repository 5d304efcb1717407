#include "kernels/cpu/backend.h"

namespace hesse::kernels::cpu {

const Backend backend{
    &fresh,
    [](Type type) { return type == Type::f32 || type == Type::f64; },
    /*scatters_in_order=*/true,
    [](const Pass& pass, c10::Device) { combine(pass); },
    [](const Sum& sum, c10::Device) { write_sum(sum); },
    [](const Scatter& scatter, c10::Device) { return scatter_add(scatter), true; },
    [](void* m, int64_t n, int word, c10::Device) { mirror_upper(m, n, word); },
    [](const Packing& packing, c10::Device) { pack_lower(packing); },
    [](int64_t) -> int64_t { return 128; },
};

}  // namespace hesse::kernels::cpu
