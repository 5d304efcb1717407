// The bodies of `combine`: one for passes that write each element once, one for sums.
#pragma once

#include "kernels/bodies/block.h"

#include <cstdlib>

namespace hesse::kernels {

namespace {

template <class I>
struct Step {
  Divider<I> n;
  std::make_signed_t<I> out, a, b;
  Step() = default;
  explicit Step(const Axis& x)
      : n(x.n),
        out(static_cast<std::make_signed_t<I>>(x.out)),
        a(static_cast<std::make_signed_t<I>>(x.a)),
        b(static_cast<std::make_signed_t<I>>(x.b)) {}
};

template <class I>
struct Places {
  std::make_signed_t<I> out = 0, a = 0, b = 0;
};

// Where element i of a box lies; the last axis is the innermost.
template <class I>
HESSE_BODY Places<I> places_of(I i, const Step<I>* axes, int rank) {
  Places<I> at;
  for (int d = rank - 1; d >= 0; --d) {
    const I rest = axes[d].n.quotient(i);
    const auto k = static_cast<std::make_signed_t<I>>(i - rest * axes[d].n.divisor);
    at.out += k * axes[d].out;
    at.a += k * axes[d].a;
    at.b += k * axes[d].b;
    i = rest;
  }
  return at;
}

// One thread per V neighbours of the output.
template <class T, class I, int V>
struct Map {
  struct Shared {};
  T* out;
  const T* a;
  const T* b;
  Value<T> alpha;
  bool writes, a_runs, b_runs;
  I total;
  int rank;
  Step<I> axes[kRank];

  template <class Block>
  HESSE_BODY void operator()(Block& block) const {
    block.each([&](int t) {
      const I step = static_cast<I>(block.count()) * kThreads;
      for (I i = static_cast<I>(block.at()) * kThreads + t; i < total; i += step) {
        const Places<I> at = places_of(i, axes, rank);
        Value<T> x[V], y[V];
        load<V>(a, at.a, a_runs, x);
        load<V>(b, at.b, b_runs, y);
        auto* to = reinterpret_cast<Vector<T, V>*>(out + at.out);
        Vector<T, V> sum = {};
        if (!writes) sum = *to;
        for (int l = 0; l < V; ++l) put(sum.at[l], product(alpha, x[l], y[l]), writes);
        *to = sum;
      }
    });
  }
};

// A group of threads per sum: few long sums get many threads each, many short ones get one. Sums are formed
// in an order that depends on the sizes alone.
template <class T, class I, int V>
struct Sums {
  struct Shared {
    Value<T> partial[kThreads];
  };
  T* out;
  const T* a;
  const T* b;
  Value<T> alpha;
  bool writes, a_runs, b_runs;
  bool along;  // neighbouring threads are of one sum, not of neighbouring sums
  int group;   // a power of 2
  I sums, length;
  int kept_rank, gone_rank;
  Step<I> kept[kRank], gone[kRank];

  template <class Block>
  HESSE_BODY void operator()(Block& block) const {
    const int here = kThreads / group;  // sums at a time
    const auto step = static_cast<I>(block.count()) * here;
    for (I first = static_cast<I>(block.at()) * here; first < sums; first += step) {
      block.each([&](int t) {
        const int lane = along ? t % group : t / here, which = along ? t / group : t % here;
        block.shared.partial[lane * here + which] = first + which < sums ? partial(first + which, lane) : 0;
      });
      for (int half = group / 2; half > 0; half /= 2) {
        block.sync();
        block.each([&](int t) {
          if (t < half * here) block.shared.partial[t] += block.shared.partial[half * here + t];
        });
      }
      block.sync();
      block.each([&](int t) {
        if (t >= here || first + t >= sums) return;
        put(out[places_of(static_cast<I>(first + t), kept, kept_rank).out], alpha * block.shared.partial[t],
            writes);
      });
      block.sync();
    }
  }

  HESSE_BODY Value<T> partial(I which, int lane) const {
    const Places<I> start = places_of(which, kept, kept_rank);
    Value<T> sum[V] = {};
    for (I i = static_cast<I>(lane); i < length; i += static_cast<I>(group)) {
      const Places<I> at = places_of(i, gone, gone_rank);
      Value<T> x[V], y[V];
      load<V>(a, start.a + at.a, a_runs, x);
      load<V>(b, start.b + at.b, b_runs, y);
      for (int l = 0; l < V; ++l) sum[l] += x[l] * y[l];
    }
    for (int l = 1; l < V; ++l) sum[0] += sum[l];
    return sum[0];
  }
};

// ---- which of them, and how -----------------------------------------------------------------------------

struct Box {
  Axis axes[kRank];
  int rank = 0;

  void push(const Axis& x) { axes[rank++] = x; }
  int64_t count() const {
    int64_t n = 1;
    for (int d = 0; d < rank; ++d) n *= axes[d].n;
    return n;
  }
};

// Whether V neighbours along the last axis of `inner` can be taken at once in an operand: they lie side by
// side, from a multiple of V on, or are one and the same.
template <class T>
bool by_vectors(const T* p, const Box& inner, const Box& outer, int64_t Axis::* stride) {
  const int64_t step = inner.axes[inner.rank - 1].*stride;
  if (!p || step == 0) return true;
  if (step != 1 || !aligned(p)) return false;
  for (const Box* box : {&inner, &outer}) {
    for (int d = 0; d < box->rank; ++d) {
      const bool last = box == &inner && d == inner.rank - 1;
      if (!last && (box->axes[d].*stride) % kVector<T> != 0) return false;
    }
  }
  return true;
}

// A transposing pass reads with jumps along the axis that it writes along, and smoothly along another. Cut
// into tiles, a block of threads uses all of what it fetches.
inline void cut_into_tiles(Box& box) {
  constexpr int64_t across = 32, along = kThreads / across;
  if (box.rank < 2 || box.rank + 2 > kRank) return;
  const Axis x = box.axes[box.rank - 1];
  if (x.out != 1 || x.n % across != 0) return;
  for (int d = 0; d + 1 < box.rank; ++d) {
    const Axis y = box.axes[d];
    if (y.n % along != 0 || !((x.a >= along && y.a == 1) || (x.b >= along && y.b == 1))) continue;
    box.axes[d] = {y.n / along, y.out * along, y.a * along, y.b * along};
    box.axes[box.rank - 1] = {x.n / across, across, x.a * across, x.b * across};
    box.push({along, y.out, y.a, y.b});
    box.push({across, 1, x.a, x.b});
    return;
  }
}

template <class T, class I, int V, class Grid>
void run_map(Grid& grid, const Pass& p, Box box) {
  Map<T, I, V> body{static_cast<T*>(p.out),
                    static_cast<const T*>(p.a),
                    static_cast<const T*>(p.b),
                    static_cast<Value<T>>(p.alpha),
                    p.write,
                    false,
                    false,
                    0,
                    box.rank,
                    {}};
  if (V > 1) {
    Axis& last = box.axes[box.rank - 1];
    body.a_runs = last.a == 1;
    body.b_runs = last.b == 1;
    last = {last.n / V, last.out * V, last.a * V, last.b * V};
  } else {
    cut_into_tiles(box);
    body.rank = box.rank;
  }
  const int64_t total = box.count();
  body.total = static_cast<I>(total);
  for (int d = 0; d < box.rank; ++d) body.axes[d] = Step<I>(box.axes[d]);
  grid.run(blocks_for(total), body);
}

template <class T, class I, int V, class Grid>
void run_sums(Grid& grid, const Pass& p, const Box& kept, Box gone) {
  constexpr int64_t full = int64_t{1} << 17;  // threads that keep a large chip busy
  constexpr int64_t turns = 8;                // of a thread, or it is not worth its place
  const Axis inner = gone.axes[gone.rank - 1];
  Sums<T, I, V> body{static_cast<T*>(p.out),
                     static_cast<const T*>(p.a),
                     static_cast<const T*>(p.b),
                     static_cast<Value<T>>(p.alpha),
                     p.write,
                     inner.a == 1,
                     inner.b == 1,
                     true,
                     1,
                     static_cast<I>(kept.count()),
                     0,
                     kept.rank,
                     gone.rank,
                     {},
                     {}};
  if (V > 1) gone.axes[gone.rank - 1] = {inner.n / V, 0, inner.a * V, inner.b * V};
  const int64_t sums = kept.count(), length = gone.count();
  body.length = static_cast<I>(length);
  if (kept.rank > 0) {
    const Axis& x = kept.axes[kept.rank - 1];
    const int64_t step = std::max(x.a, x.b);
    body.along = step == 0 || std::max(inner.a, inner.b) < step;
  }
  while (body.along && body.group < 32 && 2 * body.group <= length) body.group *= 2;
  while (body.group < kThreads && sums * body.group < full && turns * body.group < length) body.group *= 2;
  for (int d = 0; d < kept.rank; ++d) body.kept[d] = Step<I>(kept.axes[d]);
  for (int d = 0; d < gone.rank; ++d) body.gone[d] = Step<I>(gone.axes[d]);
  grid.run(blocks_for(sums * body.group), body);
}

template <class T, class Grid>
void combine_of(Grid& grid, const Pass& p) {
  constexpr int V = kVector<T>;
  Box kept, gone;
  for (size_t d = 0; d < p.rank; ++d) {
    if (p.axes[d].n != 1) (p.axes[d].out == 0 ? gone : kept).push(p.axes[d]);
  }
  if (kept.count() == 0) return;
  const bool small = fits_32(p.axes, p.rank);
  const auto *a = static_cast<const T*>(p.a), *b = static_cast<const T*>(p.b);
  const Box& inner = gone.rank > 0 ? gone : kept;
  const Box& outer = gone.rank > 0 ? kept : gone;
  bool wide = small && inner.rank > 0 && inner.axes[inner.rank - 1].n % V == 0 &&
              by_vectors(a, inner, outer, &Axis::a) && by_vectors(b, inner, outer, &Axis::b);
  if (gone.rank > 0) {
    if (wide) return run_sums<T, uint32_t, V>(grid, p, kept, gone);
    return small ? run_sums<T, uint32_t, 1>(grid, p, kept, gone)
                 : run_sums<T, uint64_t, 1>(grid, p, kept, gone);
  }
  wide = wide && inner.axes[inner.rank - 1].out == 1 &&
         by_vectors(static_cast<const T*>(p.out), inner, outer, &Axis::out);
  if (wide) return run_map<T, uint32_t, V>(grid, p, kept);
  return small ? run_map<T, uint32_t, 1>(grid, p, kept) : run_map<T, uint64_t, 1>(grid, p, kept);
}

// Of more axes than a body takes, the shortest is a loop of passes.
template <class Grid>
void combine(Grid& grid, const Pass& p) {
  size_t axes = 0, shortest = 0;
  for (size_t d = 0; d < p.rank; ++d) {
    axes += p.axes[d].n != 1;
    if (p.axes[d].n < p.axes[shortest].n || p.axes[shortest].n == 1) shortest = d;
  }
  if (axes <= kRank) {
    with_type(p.type, [&](auto one) { combine_of<decltype(one)>(grid, p); });
    return;
  }
  Axis rest[64];
  const Axis cut = p.axes[shortest];
  std::copy(p.axes, p.axes + shortest, rest);
  std::copy(p.axes + shortest + 1, p.axes + p.rank, rest + shortest);
  int64_t bytes = 0;
  with_type(p.type, [&](auto one) { bytes = sizeof(one); });
  auto moved = [bytes](const void* from, int64_t elements) -> const void* {
    return from ? static_cast<const char*>(from) + elements * bytes : nullptr;
  };
  for (int64_t i = 0; i < cut.n; ++i) {
    Pass part = p;
    part.out = const_cast<void*>(moved(p.out, i * cut.out));
    part.a = moved(p.a, i * cut.a);
    part.b = moved(p.b, i * cut.b);
    part.write = p.write && (cut.out != 0 || i == 0);
    part.axes = rest;
    part.rank = p.rank - 1;
    combine(grid, part);
  }
}

}  // namespace

}  // namespace hesse::kernels
