#include "kernels/cpu/backend.h"

namespace hesse::kernels::cpu {

const Backend backend{
    &fresh,
    [](Type type) { return type == Type::f32 || type == Type::f64; },
    [](const Pass& pass, c10::Device) { combine(pass); },
    [](void* m, int64_t n, int word, c10::Device) { mirror_upper(m, n, word); },
    [](const Packing& packing, c10::Device) { pack_lower(packing); },
};

}  // namespace hesse::kernels::cpu
