// What the body of a kernel is written in: C++ that nvcc and any other compiler take.
//
// A body is a plain struct of parameters with the type of its shared memory, `Shared`, and the work of one
// block, `operator()(block)`:
//
//     block.at(), block.count()   which block this is, and of how many
//     block.each(f)               f(t) for each thread t of the block
//     block.sync()                what was written before can be read after, by all threads
//     block.shared                a Shared
//
// On a GPU (cuda/grid.cuh) a thread is a thread and `sync` a barrier. On the host (host/grid.h) `each` is a
// loop, so that the tests of the CPU run the indexing of the GPU's kernels. Nothing else may tell them apart,
// so a body keeps no variable of a thread from one `each` to the next.
#pragma once

#include "kernels/functors.h"
#include "kernels/pass.h"

#include <algorithm>
#include <cstdlib>
#include <type_traits>

#ifdef __CUDACC__
#define HESSE_BODY __device__ __forceinline__
#else
#define HESSE_BODY inline
#endif

namespace hesse::kernels {

namespace {

constexpr int kThreads = 256;
constexpr int kRank = 8;    // axes of a pass; longer ones are cut
constexpr int kBytes = 16;  // the widest access
constexpr int64_t kMost32 = int64_t{1} << 31;

template <class T>
constexpr int kVector = kBytes / sizeof(T);

template <class T, int V>
struct alignas(sizeof(T) * V) Vector {
  T at[V];
};

// Division by a number that is known beforehand. 32 bits: a product and a shift, for dividends below 2^31
// (Granlund and Montgomery, Division by invariant integers using multiplication, 1994).
template <class I>
struct Divider {
  I divisor = 1;
  Divider() = default;
  explicit Divider(int64_t d) : divisor(static_cast<I>(std::max<int64_t>(d, 1))) {}
  HESSE_BODY I quotient(I n) const { return n / divisor; }
};

template <>
struct Divider<uint32_t> {
  uint32_t divisor = 1, factor = 1, shift = 0;
  Divider() = default;
  explicit Divider(int64_t d) : divisor(static_cast<uint32_t>(std::max<int64_t>(d, 1))) {
    while ((int64_t{1} << shift) < d) ++shift;
    factor = static_cast<uint32_t>((((uint64_t{1} << shift) - divisor) << 32) / divisor + 1);
  }
  HESSE_BODY uint32_t quotient(uint32_t n) const {
#ifdef __CUDA_ARCH__
    const uint32_t high = __umulhi(n, factor);
#else
    const auto high = static_cast<uint32_t>((static_cast<uint64_t>(n) * factor) >> 32);
#endif
    return (high + n) >> shift;
  }
};

// Calls f with a value of the element type.
template <class F>
void with_type(Type type, F f) {
  switch (type) {
    case Type::f32:
      return f(float{});
    case Type::f64:
      return f(double{});
    case Type::f16:
      return f(Half{});
    case Type::bf16:
      return f(BFloat16{});
  }
}

inline int64_t blocks_for(int64_t threads) { return (threads + kThreads - 1) / kThreads; }

template <class T>
bool aligned(const T* p) {
  return reinterpret_cast<uintptr_t>(p) % kBytes == 0;
}

// How far from its first element an operand is read or written, by one of its strides.
inline int64_t reach(const Axis* axes, size_t rank, int64_t Axis::* stride) {
  int64_t sum = 0;
  for (size_t d = 0; d < rank; ++d) sum += (axes[d].n - 1) * std::abs(axes[d].*stride);
  return sum;
}

inline bool fits_32(const Axis* axes, size_t rank) {
  int64_t count = 1;
  for (size_t d = 0; d < rank; ++d) {
    if (axes[d].n >= kMost32) return false;
    count *= axes[d].n;
    if (count >= kMost32) return false;
  }
  return std::max({reach(axes, rank, &Axis::out), reach(axes, rank, &Axis::a), reach(axes, rank, &Axis::b)}) <
         kMost32;
}

// The elements of a factor that belong to V neighbours: itself, as it runs along with them, or one for all.
template <int V, class T>
HESSE_BODY void load(const T* p, int64_t offset, bool runs, Value<T> (&to)[V]) {
  if (!p) {
    for (int l = 0; l < V; ++l) to[l] = 1;
  } else if (V > 1 && runs) {
    const auto v = *reinterpret_cast<const Vector<T, V>*>(p + offset);
    for (int l = 0; l < V; ++l) to[l] = value_of(v.at[l]);
  } else {
    const Value<T> one = value_of(p[offset]);
    for (int l = 0; l < V; ++l) to[l] = one;
  }
}

}  // namespace

}  // namespace hesse::kernels
