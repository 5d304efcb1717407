// The loops of `combine`, compiled once per instruction set: plain C++ on plain structs, so that no inline
// function of a library is compiled for a processor that may not be there.
#pragma once

#include "kernels/functors.h"
#include "kernels/pass.h"

namespace hesse::kernels::cpu {

// The innermost axis is the last. An absent factor is a one that every stride of 0 points at.
template <typename T>
struct Loops {
  T* out;
  const T* a;
  const T* b;
  const Axis* axes;
  size_t rank;
  T alpha;
  bool write;
};

void run_baseline(const Loops<float>& loops);
void run_baseline(const Loops<double>& loops);
void run_avx2(const Loops<float>& loops);
void run_avx2(const Loops<double>& loops);
void run_avx512(const Loops<float>& loops);
void run_avx512(const Loops<double>& loops);

namespace {

template <bool kWrite, typename T>
inline void put(T& out, T value) {
  kernels::put(out, value, kWrite);
}

// Many partial sums, which stay in registers.
template <typename T>
T dot(const T* a, const T* b, int64_t n) {
  constexpr int64_t kLanes = 32;
  T partial[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t l = 0; l < kLanes; ++l) partial[l] += a[i + l] * b[i + l];
  }
  T sum = 0;
  for (; i < n; ++i) sum += a[i] * b[i];
  for (int64_t half = kLanes / 2; half > 0; half /= 2) {
    for (int64_t l = 0; l < half; ++l) partial[l] += partial[l + half];
  }
  return sum + partial[0];
}

template <typename T>
T sum_of_products(const T* a, const T* b, const Axis& x) {
  if (x.a == 1 && x.b == 1) return dot(a, b, x.n);
  T even = 0, odd = 0;
  int64_t i = 0;
  for (; i + 1 < x.n; i += 2) {
    even += a[i * x.a] * b[i * x.b];
    odd += a[(i + 1) * x.a] * b[(i + 1) * x.b];
  }
  return even + odd + (i < x.n ? a[i * x.a] * b[i * x.b] : T(0));
}

template <bool kWrite, typename T>
void innermost(T* __restrict out, const T* a, const T* b, const Axis& x, T alpha) {
  if (x.out == 0) return put<kWrite>(*out, alpha * sum_of_products(a, b, x));
  if (x.a == 0 && x.b == 0) {
    const T value = product(alpha, *a, *b);
    for (int64_t i = 0; i < x.n; ++i) put<kWrite>(out[i * x.out], value);
  } else if (x.a == 0 || x.b == 0) {
    const T scale = alpha * (x.a == 0 ? *a : *b);
    const T* f = x.a == 0 ? b : a;
    const int64_t step = x.a + x.b;
    if (x.out == 1 && step == 1) {
      for (int64_t i = 0; i < x.n; ++i) put<kWrite>(out[i], scale * f[i]);
    } else {
      for (int64_t i = 0; i < x.n; ++i) put<kWrite>(out[i * x.out], scale * f[i * step]);
    }
  } else if (x.a == 1 && x.b == 1) {
    if (x.out == 1) {
      for (int64_t i = 0; i < x.n; ++i) put<kWrite>(out[i], product(alpha, a[i], b[i]));
    } else {
      for (int64_t i = 0; i < x.n; ++i) put<kWrite>(out[i * x.out], product(alpha, a[i], b[i]));
    }
  } else {
    for (int64_t i = 0; i < x.n; ++i) put<kWrite>(out[i * x.out], product(alpha, a[i * x.a], b[i * x.b]));
  }
}

template <bool kWrite, typename T>
void nest(T* out, const T* a, const T* b, const Axis* axes, size_t rank, T alpha) {
  if (rank == 1) return innermost<kWrite>(out, a, b, axes[0], alpha);
  const Axis& x = axes[0];
  for (int64_t i = 0; i < x.n; ++i)
    nest<kWrite>(out + i * x.out, a + i * x.a, b + i * x.b, axes + 1, rank - 1, alpha);
}

template <typename T>
void run_nest(const Loops<T>& l) {
  (l.write ? nest<true, T> : nest<false, T>)(l.out, l.a, l.b, l.axes, l.rank, l.alpha);
}

}  // namespace

}  // namespace hesse::kernels::cpu
