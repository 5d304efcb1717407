#include "kernels/cpu/backend.h"
#include "kernels/functors.h"

namespace hesse::kernels::cpu {

namespace {

int64_t step_to(const ScatterAxis& x, int64_t i) {
  int64_t place = i * x.out;
  for (const IndexStep& by : x.by) {
    if (by.index) place += by.index[i] * by.step;
  }
  return place;
}

// One after the other: two elements may go to one place.
template <typename T>
void nest(T* out, const T* a, const T* b, const ScatterAxis* axes, size_t rank, T alpha) {
  const ScatterAxis& x = axes[0];
  if (rank == 1) {
    for (int64_t i = 0; i < x.n; ++i) add(out[step_to(x, i)], product(alpha, a[i * x.a], b[i * x.b]));
    return;
  }
  for (int64_t i = 0; i < x.n; ++i)
    nest(out + step_to(x, i), a + i * x.a, b + i * x.b, axes + 1, rank - 1, alpha);
}

template <typename T>
void scatter_of(const Scatter& s) {
  static constexpr T one = 1;
  nest(static_cast<T*>(s.out), s.a ? static_cast<const T*>(s.a) : &one,
       s.b ? static_cast<const T*>(s.b) : &one, s.axes, s.rank, static_cast<T>(s.alpha));
}

}  // namespace

void scatter_add(const Scatter& scatter) {
  if (scatter.type == Type::f32) return scatter_of<float>(scatter);
  scatter_of<double>(scatter);
}

}  // namespace hesse::kernels::cpu
