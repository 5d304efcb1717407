// A tangent is the derivative of a value in all seed directions at once:
//
//     T[k, v],   k in [0, K) the seed,   v the flat (row-major) index into a value of shape S,
//
// stored as a sum of lazy, affinely placed terms
//
//     T[k0 + sum_d i_d ks_d,  v0 + sum_d i_d vs_d] += alpha * coef[i] * core[i].
//
// Neither factor is ever expanded: each has one axis per dimension, of size n_d or 1 (broadcast), and an
// undefined factor is 1. `coef` is what elementwise ops multiply: it is value-sized, as it varies along
// dimensions that move the value index (vs != 0). Where such a dimension loses its value stride (a sum over
// it), both factors stay apart until the next elementwise op folds coef into the core. A dimension with both
// strides non-zero is *tied*: a diagonal.
//
// On either side a dimension may be placed by an index instead, i_d -> index[i_d], which may name a place
// twice: so gathering rows keeps their ties, and scattering them back gives blocks at known places.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <cstdint>
#include <memory>
#include <utility>

namespace hesse {

using at::Tensor;
using Shape = c10::SmallVector<int64_t, 6>;

int64_t numel_of(c10::IntArrayRef shape);
Shape row_major(c10::IntArrayRef shape);  // strides of a contiguous tensor

// Places in [0, size) by index.
struct Places {
  Tensor index;  // [n], int64
  int64_t size;
};

// Plain data: copied all the time, placed by index rarely. The term holds what its dimensions are placed by.
struct Dim {
  int64_t n;                  // size
  int64_t ks;                 // seed stride
  int64_t vs;                 // value stride
  const Places* k = nullptr;  // seeds by index: ks * k[i]
  const Places* v = nullptr;  // values by index: vs * v[i]
  bool operator==(const Dim& o) const;
  bool indexed() const { return k || v; }
  // How many steps of its stride the dimension may reach over.
  int64_t seed_extent() const { return k ? k->size : n; }
  int64_t value_extent() const { return v ? v->size : n; }
};

struct HeldPlaces {
  Places places;
  std::shared_ptr<const HeldPlaces> others;
};

struct Term {
  c10::SmallVector<Dim, 6> dims;
  int64_t k0 = 0;
  int64_t v0 = 0;
  double alpha = 1.0;
  Tensor coef;  // [n_d or 1, ...]; undefined: 1
  Tensor core;  // [n_d or 1, ...]; undefined: 1
  std::shared_ptr<const HeldPlaces> held;
  bool owned = false;    // core counts as memory of the sweep, not as a view of a known tensor
  bool spoiled = false;  // core may hold NaN, which a factor that selects has to end there too

  int64_t rank() const { return static_cast<int64_t>(dims.size()); }
  bool indexed() const;      // along any dimension
  int64_t coverage() const;  // elements of T that the term touches (some twice if indexed)
  int64_t stored() const;    // elements held in memory (coef and core)
  std::pair<int64_t, int64_t> seed_range() const;  // [first, last + 1)
};

// For a dimension of the term to be placed by.
const Places* hold(Term& term, Tensor index, int64_t size);

Shape sizes_of(const Term& term);
// The factor has more than one value along dimension d.
inline bool varies(const Tensor& factor, int64_t d) { return factor.defined() && factor.size(d) > 1; }
// One and the same memory, or both undefined. Under grad mode only the same tensor will do: two views of
// equal memory may have different histories.
bool same_factor(const Tensor& a, const Tensor& b);
bool same_placement(const Term& a, const Term& b);

// A term's dimensions resolved onto the axes of a shape: dimension d moves along axis[d] (or -1) by step[d],
// starting at offset[axis].
struct Placement {
  c10::SmallVector<int64_t, 6> axis;
  c10::SmallVector<int64_t, 6> step;
  c10::SmallVector<int64_t, 6> offset;
};

// Splits dimensions until each lies within one axis of `shape`; false when that cannot be expressed.
bool place(Term& term, c10::IntArrayRef shape, Placement& placement);

// Splits dimension d of the term into (n / inner, inner).
void split_dim(Term& term, int64_t d, int64_t inner);
// Drops dimensions of size 1.
void squeeze(Term& term);
// Multiplies coef into core (after which coef is undefined).
void fold_coef(Term& term);
// Moves a lone factor to where it belongs after a dimension lost its value stride.
void settle(Term& term);
// coef varies along a dimension without a value stride.
bool coef_on_seed(const Term& term);
// out[k, v] += term; out: contiguous rows [k_begin, ...) of [K, numel].
void add_into(const Tensor& out, const Term& term, int64_t k_begin, int64_t numel);
// out[k, v] = the sum of the terms.
void write_into(const Tensor& out, c10::ArrayRef<Term> terms, int64_t k_begin, int64_t numel);
// alpha * coef * core, one axis per dimension of size n_d or 1.
Tensor product(const Term& term);

}  // namespace hesse
