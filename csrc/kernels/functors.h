// Arithmetic of one element, the same on every device. Half precision is stored in 16 bits and computed in
// float.
//
// Everything here is inline in a namespace without a name: a function that one instruction set compiles must
// not be the one that another calls.
#pragma once

#include <cstdint>
#include <cstring>

#ifdef __CUDACC__
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#define HESSE_FUNCTION __host__ __device__ __forceinline__
#else
#define HESSE_FUNCTION inline
#endif

namespace hesse::kernels {

namespace {

struct Half {
  uint16_t bits;
};

struct BFloat16 {
  uint16_t bits;
};

template <class T>
struct Arithmetic {
  using type = T;
};
template <>
struct Arithmetic<Half> {
  using type = float;
};
template <>
struct Arithmetic<BFloat16> {
  using type = float;
};
// What elements of a type are computed and summed in.
template <class T>
using Value = typename Arithmetic<T>::type;

HESSE_FUNCTION uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}

HESSE_FUNCTION float float_of(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

HESSE_FUNCTION float value_of(float x) { return x; }
HESSE_FUNCTION double value_of(double x) { return x; }
HESSE_FUNCTION float value_of(BFloat16 x) { return float_of(static_cast<uint32_t>(x.bits) << 16); }

HESSE_FUNCTION float value_of(Half x) {
#ifdef __CUDA_ARCH__
  return __half2float(__ushort_as_half(x.bits));
#else
  const uint32_t sign = (x.bits & 0x8000u) << 16, rest = (x.bits & 0x7fffu) << 13;
  if (rest >= 0x0f800000u) return float_of(sign | 0x70000000u | rest);  // infinite or NaN
  return float_of(sign | bits_of(float_of(rest) * 0x1p112f));           // subnormal numbers too
#endif
}

// Rounded to the nearest, ties to even.
HESSE_FUNCTION void store(float& to, float x) { to = x; }
HESSE_FUNCTION void store(double& to, double x) { to = x; }

HESSE_FUNCTION void store(BFloat16& to, float x) {
#ifdef __CUDA_ARCH__
  to.bits = __bfloat16_as_ushort(__float2bfloat16_rn(x));
#else
  const uint32_t bits = bits_of(x);
  to.bits = static_cast<uint16_t>(x != x ? 0x7fc0u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
#endif
}

HESSE_FUNCTION void store(Half& to, float x) {
#ifdef __CUDA_ARCH__
  to.bits = __half_as_ushort(__float2half_rn(x));
#else
  const uint32_t sign = (bits_of(x) >> 16) & 0x8000u, size = bits_of(x) & 0x7fffffffu;
  uint32_t half;
  if (size > 0x7f800000u) {
    half = 0x7e00u;
  } else if (size >= 0x477ff000u) {  // the largest, 65504, and half a unit
    half = 0x7c00u;
  } else if (size < 0x38800000u) {  // subnormal: the unit of numbers near 1/2 is the one to round to
    half = bits_of(float_of(size) + 0.5f) - 0x3f000000u;
  } else {
    half = (size - 0x38000000u + 0xfffu + ((size >> 13) & 1u)) >> 13;
  }
  to.bits = static_cast<uint16_t>(sign | half);
#endif
}

template <class V>
HESSE_FUNCTION V product(V alpha, V a, V b) {
  return alpha * a * b;
}

template <class T>
HESSE_FUNCTION void write(T& to, Value<T> value) {
  store(to, value);
}

template <class T>
HESSE_FUNCTION void add(T& to, Value<T> value) {
  store(to, value_of(to) + value);
}

template <class T>
HESSE_FUNCTION void put(T& to, Value<T> value, bool writes) {
  writes ? write(to, value) : add(to, value);
}

// Adds where several threads may add at once.
template <class T>
HESSE_FUNCTION void add_at_once(T* to, Value<T> value) {
#ifdef __CUDA_ARCH__
  atomicAdd(to, value);
#else
  add(*to, value);
#endif
}
#ifdef __CUDACC__
template <>
HESSE_FUNCTION void add_at_once(Half* to, float value) {
#ifdef __CUDA_ARCH__
  atomicAdd(reinterpret_cast<__half*>(to), __float2half_rn(value));
#else
  add(*to, value);
#endif
}
template <>
HESSE_FUNCTION void add_at_once(BFloat16* to, float value) {
#ifdef __CUDA_ARCH__
  atomicAdd(reinterpret_cast<__nv_bfloat16*>(to), __float2bfloat16_rn(value));
#else
  add(*to, value);
#endif
}
#endif

}  // namespace

}  // namespace hesse::kernels
