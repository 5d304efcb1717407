// The body of `write_sum`, from the side of the output: each thread finds by division which parts touch its V
// neighbours, and writes them once, zeros included.
#pragma once

#include "kernels/bodies/combine.h"

#include <vector>

namespace hesse::kernels {

namespace {

constexpr int kParts = 8;  // at a time; more are added
constexpr int kPartRank = 6;

// A part along one axis. Strides of the output are nested: what lies within reaches less far than one step.
template <class I>
struct Reach {
  Divider<I> step;
  I last;  // index
  std::make_signed_t<I> a, b;
};

template <class T, class I>
struct Gathered {
  const T* a;
  const T* b;
  Value<T> alpha;
  I offset;   // of its first element: of vectors, if it comes in vectors
  bool wide;  // touches all of a vector or nothing
  bool a_runs, b_runs;
  int rank;
  Reach<I> axes[kPartRank];
};

template <class T, class I>
struct WriteSum {
  static constexpr int V = kVector<T>;
  struct Shared {};
  T* out;      // where the first vector begins: aligned, and up to V - 1 elements before the first one
  I skipped;   // these
  I elements;  // with them
  I vectors;
  int count;
  Gathered<T, I> parts[kParts];

  template <class Block>
  HESSE_BODY void operator()(Block& block) const {
    block.each([&](int t) {
      const I step = static_cast<I>(block.count()) * kThreads;
      for (I v = static_cast<I>(block.at()) * kThreads + t; v < vectors; v += step) vector(v);
    });
  }

  HESSE_BODY void vector(I v) const {
    const I begin = v * V, first = begin < skipped ? skipped : begin;
    const I end = begin + V < elements ? begin + V : elements;
    Value<T> sum[V] = {};
    for (int p = 0; p < count; ++p)
      parts[p].wide ? add_wide(parts[p], v, sum) : add(parts[p], begin, first, end, sum);
    Vector<T, V> to;
    for (int l = 0; l < V; ++l) store(to.at[l], sum[l]);
    if (end - first == V) {
      *reinterpret_cast<Vector<T, V>*>(out + begin) = to;
    } else {
      for (int l = 0; l < V; ++l) {
        if (begin + l >= first && begin + l < end) out[begin + l] = to.at[l];
      }
    }
  }

  HESSE_BODY void add_wide(const Gathered<T, I>& part, I v, Value<T> (&sum)[V]) const {
    if (v < part.offset) return;
    I rest = v - part.offset;
    std::make_signed_t<I> a = 0, b = 0;
    for (int d = 0; d < part.rank; ++d) {
      const Reach<I>& x = part.axes[d];
      const I i = x.step.quotient(rest);
      if (i > x.last) return;
      rest -= i * x.step.divisor;
      a += static_cast<std::make_signed_t<I>>(i) * x.a;
      b += static_cast<std::make_signed_t<I>>(i) * x.b;
    }
    if (rest != 0) return;
    Value<T> x[V], y[V];
    load<V>(part.a, a, part.a_runs, x);
    load<V>(part.b, b, part.b_runs, y);
    for (int l = 0; l < V; ++l) sum[l] += product(part.alpha, x[l], y[l]);
  }

  // From the last element that the part touches before `end` back to `first`. Within the innermost axis the
  // one before is a step away; at its start it is found by division again.
  HESSE_BODY void add(const Gathered<T, I>& part, I begin, I first, I end, Value<T> (&sum)[V]) const {
    if (end <= part.offset) return;
    const I lowest = first > part.offset ? first - part.offset : 0;
    I at = end - 1 - part.offset;
    for (;;) {
      I rest = at, i = 0;
      std::make_signed_t<I> a = 0, b = 0;
      for (int d = 0; d < part.rank; ++d) {
        const Reach<I>& x = part.axes[d];
        i = x.step.quotient(rest);
        i = i < x.last ? i : x.last;
        rest -= i * x.step.divisor;
        a += static_cast<std::make_signed_t<I>>(i) * x.a;
        b += static_cast<std::make_signed_t<I>>(i) * x.b;
      }
      if (at - lowest < rest) return;
      at -= rest;
      const Reach<I>& inner = part.axes[part.rank - 1];
      for (;;) {
        const Value<T> value = product(part.alpha, part.a ? value_of(part.a[a]) : Value<T>(1),
                                       part.b ? value_of(part.b[b]) : Value<T>(1));
        const I place = at + part.offset - begin;
        for (int l = 0; l < V; ++l) sum[l] += place == static_cast<I>(l) ? value : Value<T>(0);
        if (at == lowest) return;
        if (i == 0) break;
        if (at - lowest < inner.step.divisor) return;
        at -= inner.step.divisor;
        a -= inner.a;
        b -= inner.b;
        --i;
      }
      --at;
    }
  }
};

// A part from the output's side.
struct Nested {
  Box box;
  const Pass* pass;
  int64_t offset;
};

// false: its strides are not nested, or it sums.
inline bool nest(const Pass& p, int64_t offset, Nested& to) {
  to = {{}, &p, offset};
  Box& box = to.box;
  for (size_t d = 0; d < p.rank; ++d) {
    if (p.axes[d].n == 1) continue;
    if (box.rank == kPartRank) return false;
    box.push(p.axes[d]);
  }
  int64_t within = 0;
  for (int d = box.rank - 1; d >= 0; --d) {  // sorted already
    if (box.axes[d].out <= within) return false;
    within += (box.axes[d].n - 1) * box.axes[d].out;
  }
  if (box.rank == 0) box.push({1, 1, 0, 0});
  return true;
}

template <class T, class I>
Gathered<T, I> gathered(const Nested& n, int64_t skipped) {
  constexpr int64_t V = kVector<T>;
  const auto *a = static_cast<const T*>(n.pass->a), *b = static_cast<const T*>(n.pass->b);
  Gathered<T, I> part{a, b, static_cast<Value<T>>(n.pass->alpha), 0, false, false, false, n.box.rank, {}};
  Box box = n.box;
  Axis& last = box.axes[box.rank - 1];
  int64_t offset = n.offset + skipped;
  part.wide = last.out == 1 && last.n % V == 0 && offset % V == 0 && by_vectors(part.a, box, {}, &Axis::a) &&
              by_vectors(part.b, box, {}, &Axis::b);
  for (int d = 0; d + 1 < box.rank; ++d) part.wide = part.wide && box.axes[d].out % V == 0;
  if (part.wide) {
    part.a_runs = last.a == 1;
    part.b_runs = last.b == 1;
    for (int d = 0; d + 1 < box.rank; ++d) box.axes[d].out /= V;
    last = {last.n / V, 1, last.a * V, last.b * V};
    offset /= V;
  }
  part.offset = static_cast<I>(offset);
  for (int d = 0; d < box.rank; ++d) {
    const Axis& x = box.axes[d];
    part.axes[d] = {Divider<I>(x.out), static_cast<I>(x.n - 1), static_cast<std::make_signed_t<I>>(x.a),
                    static_cast<std::make_signed_t<I>>(x.b)};
  }
  return part;
}

template <class T, class I, class Grid>
void run_write_sum(Grid& grid, T* out, int64_t n, const Nested* parts, int count) {
  constexpr int64_t V = kVector<T>;
  const auto skipped = static_cast<int64_t>(reinterpret_cast<uintptr_t>(out) % kBytes / sizeof(T));
  const int64_t elements = n + skipped, vectors = (elements + V - 1) / V;
  WriteSum<T, I> body{
      out - skipped, static_cast<I>(skipped), static_cast<I>(elements), static_cast<I>(vectors), count, {}};
  for (int p = 0; p < count; ++p) body.parts[p] = gathered<T, I>(parts[p], skipped);
  grid.run(blocks_for(vectors), body);
}

// What does not fit into one such pass is handed to `add` after it.
template <class Grid, class Add>
void write_sum(Grid& grid, const Sum& sum, Add add) {
  if (sum.n == 0) return;
  with_type(sum.type, [&](auto one) {
    using T = decltype(one);
    T* out = static_cast<T*>(sum.out);
    Nested nested[kParts];
    std::vector<bool> done(sum.count);
    int count = 0;
    bool small = sum.n < kMost32 - 2 * kVector<T>;
    for (size_t p = 0; p < sum.count && count < kParts; ++p) {
      const Pass& part = sum.parts[p];
      if (!nest(part, static_cast<T*>(part.out) - out, nested[count])) continue;
      small = small && fits_32(part.axes, part.rank);
      done[p] = true;
      count += nested[count].box.count() > 0;
    }
    small ? run_write_sum<T, uint32_t>(grid, out, sum.n, nested, count)
          : run_write_sum<T, uint64_t>(grid, out, sum.n, nested, count);
    for (size_t p = 0; p < sum.count; ++p) {
      if (!done[p]) add(sum.parts[p]);
    }
  });
}

}  // namespace

}  // namespace hesse::kernels
