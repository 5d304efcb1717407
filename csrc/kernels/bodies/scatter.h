// The body of `scatter_add`: one thread per element, places computed on the way.
#pragma once

#include "kernels/bodies/combine.h"

namespace hesse::kernels {

namespace {

template <class I>
struct ScatterStep {
  Divider<I> n;
  int64_t out, a, b;
  IndexStep by[2];
};

template <class T, class I>
struct ScatterAdd {
  struct Shared {};
  T* out;
  const T* a;
  const T* b;
  Value<T> alpha;
  I total;
  int rank;
  ScatterStep<I> axes[kRank];

  template <class Block>
  HESSE_BODY void operator()(Block& block) const {
    block.each([&](int t) {
      const I step = static_cast<I>(block.count()) * kThreads;
      for (I i = static_cast<I>(block.at()) * kThreads + t; i < total; i += step) element(i);
    });
  }

  HESSE_BODY void element(I i) const {
    int64_t place = 0, x = 0, y = 0;
    for (int d = rank - 1; d >= 0; --d) {
      const ScatterStep<I>& axis = axes[d];
      const I rest = axis.n.quotient(i);
      const auto k = static_cast<int64_t>(i - rest * axis.n.divisor);
      place += k * axis.out;
      if (axis.by[0].index) place += axis.by[0].step * axis.by[0].index[k];
      if (axis.by[1].index) place += axis.by[1].step * axis.by[1].index[k];
      x += k * axis.a;
      y += k * axis.b;
      i = rest;
    }
    add_at_once(out + place,
                product(alpha, a ? value_of(a[x]) : Value<T>(1), b ? value_of(b[y]) : Value<T>(1)));
  }
};

template <class T, class I, class Grid>
void run_scatter(Grid& grid, const Scatter& s, int64_t total) {
  ScatterAdd<T, I> body{static_cast<T*>(s.out),
                        static_cast<const T*>(s.a),
                        static_cast<const T*>(s.b),
                        static_cast<Value<T>>(s.alpha),
                        static_cast<I>(total),
                        static_cast<int>(s.rank),
                        {}};
  for (size_t d = 0; d < s.rank; ++d) {
    const ScatterAxis& x = s.axes[d];
    body.axes[d] = {Divider<I>(x.n), x.out, x.a, x.b, {x.by[0], x.by[1]}};
  }
  grid.run(blocks_for(total), body);
}

// false: more axes than the body takes.
template <class Grid>
bool scatter_add(Grid& grid, const Scatter& s) {
  int64_t total = 1;
  for (size_t d = 0; d < s.rank; ++d) total *= s.axes[d].n;
  if (s.rank > kRank) return false;
  with_type(s.type, [&](auto one) {
    using T = decltype(one);
    total < kMost32 ? run_scatter<T, uint32_t>(grid, s, total) : run_scatter<T, uint64_t>(grid, s, total);
  });
  return true;
}

}  // namespace

}  // namespace hesse::kernels
