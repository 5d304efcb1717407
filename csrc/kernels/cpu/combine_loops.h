// The loops of `combine`, compiled once per instruction set: plain C++ on plain structs, so that no inline
// function of a library is compiled for a processor that may not be there.
#pragma once

#include <cstddef>
#include <cstdint>

namespace hesse::kernels {

struct Axis {
  int64_t n, out, a, b;  // size, and the stride of each operand
};

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
  out = kWrite ? value : out + value;
}

template <typename T>
T sum_of_products(const T* a, const T* b, const Axis& x) {
  T sum = 0;
  if (x.a == 1 && x.b == 1) {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < x.n; ++i) sum += a[i] * b[i];
  } else {
#pragma omp simd reduction(+ : sum)
    for (int64_t i = 0; i < x.n; ++i) sum += a[i * x.a] * b[i * x.b];
  }
  return sum;
}

template <bool kWrite, typename T>
void innermost(T* __restrict out, const T* a, const T* b, const Axis& x, T alpha) {
  if (x.out == 0) return put<kWrite>(*out, alpha * sum_of_products(a, b, x));
  if (x.a == 0 && x.b == 0) {
    const T value = alpha * *a * *b;
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
  } else if (x.out == 1 && x.a == 1 && x.b == 1) {
    for (int64_t i = 0; i < x.n; ++i) put<kWrite>(out[i], alpha * a[i] * b[i]);
  } else {
    for (int64_t i = 0; i < x.n; ++i) put<kWrite>(out[i * x.out], alpha * a[i * x.a] * b[i * x.b]);
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

}  // namespace hesse::kernels
