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
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/SmallVector.h>

#include <cstdint>
#include <utility>
#include <vector>

namespace hesse {

using at::Tensor;
using Shape = c10::SmallVector<int64_t, 6>;

struct Dim {
  int64_t n;   // size
  int64_t ks;  // seed stride
  int64_t vs;  // value stride
  bool operator==(const Dim& o) const { return n == o.n && ks == o.ks && vs == o.vs; }
};

struct Term {
  c10::SmallVector<Dim, 6> dims;
  int64_t k0 = 0;
  int64_t v0 = 0;
  double alpha = 1.0;
  Tensor coef;         // [n_d or 1, ...]; undefined: 1
  Tensor core;         // [n_d or 1, ...]; undefined: 1
  bool owned = false;  // core is memory that the sweep allocated, not a view of a known tensor

  int64_t rank() const { return static_cast<int64_t>(dims.size()); }
  int64_t coverage() const;                        // elements of T that the term touches
  int64_t stored() const;                          // elements held in memory (coef and core)
  std::pair<int64_t, int64_t> seed_range() const;  // [first, last + 1)
};

struct Tangent {
  int64_t K = 0;                    // seeds
  Shape shape;                      // S
  at::TensorOptions options;        // dtype and device of T
  c10::SmallVector<Term, 2> terms;  // none: zero
  bool upper = false;               // holds only what lies on or above the Hessian's diagonal (see Demand)

  bool zero() const { return terms.empty(); }
  int64_t numel() const;  // of S
};

int64_t numel_of(c10::IntArrayRef shape);
Shape row_major(c10::IntArrayRef shape);  // strides of a contiguous tensor

// ---- constructors -------------------------------------------------------------------------------------

Tangent zero_like(const Tangent& t, c10::IntArrayRef shape);
// T[k, v] = 1 where k + k_begin == v: rows [k_begin, k_end) of the identity on a value of `shape`,
// placed from row `at` of K. The range must be a box (see seed_boxes).
void add_identity(Tangent& t, int64_t k_begin, int64_t k_end, int64_t at);
// Cuts [begin, end) into ranges that are boxes of `shape` (aligned with its axes).
std::vector<std::pair<int64_t, int64_t>> seed_boxes(c10::IntArrayRef shape, int64_t begin, int64_t end);
// One direction (K = 1) given as a value of shape S; an expanded tensor stays expanded.
Tangent from_value(const Tensor& value);
// rows: [k, *S], placed from row k0 of K.
Tangent from_dense(const Tensor& rows, int64_t K, int64_t k0 = 0);

// ---- out of the representation --------------------------------------------------------------------------

// [k_end - k_begin, *S], contiguous or expanded; always a correct, independent reading of T.
Tensor dense(const Tangent& t, int64_t k_begin, int64_t k_end);
inline Tensor dense(const Tangent& t) { return dense(t, 0, t.K); }
// Rows of T that can be non-zero: [first, last + 1); {0, 0} for zero.
std::pair<int64_t, int64_t> seed_range(const Tangent& t);
// K = 1: the tensor of shape S (possibly expanded).
Tensor value(const Tangent& t);

// ---- structure ------------------------------------------------------------------------------------------

// A term's dimensions resolved onto the axes of a shape: dimension d moves along axis[d] (or -1) by step[d],
// starting at offset[axis].
struct Placement {
  c10::SmallVector<int64_t, 6> axis;
  c10::SmallVector<int64_t, 6> step;
  c10::SmallVector<int64_t, 6> offset;
};

// Splits dimensions until each lies within one axis of `shape`; false when strides cannot express it.
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
// out[k, v] = term, which fills them.
void write_into(const Tensor& out, const Term& term, int64_t k_begin, int64_t numel);
// alpha * coef * core, one axis per dimension of size n_d or 1.
Tensor product(const Term& term);
// Rewrites every term as one dense box [k, *S]; records the op that asked for it.
void densify(Tangent& t);
// The same for a single term.
Term densify(const Tangent& t, const Term& term);
// Only the seeds in [0, k_end).
void restrict_seeds(Tangent& t, int64_t k_end);

// One and the same memory, or both undefined. Under grad mode only the same tensor will do: two views of
// equal memory may have different histories.
bool same_factor(const Tensor& a, const Tensor& b);
// Term by term the same memory in the same places.
bool same(const Tangent& a, const Tangent& b);
// t += other, merging terms of equal core and placement, combining where terms outgrow the dense box
// (`combining` false: never, for sums that go to the assembly as they are).
void accumulate(Tangent& t, Tangent other, bool combining = true);
// A copy in another dtype.
Tangent cast(Tangent t, at::ScalarType dtype);

}  // namespace hesse
