// A tangent is the derivative of a value in all seed directions at once: a sum of terms (see term.h).
#pragma once

#include "term.h"

#include <vector>

namespace hesse {

struct Tangent {
  int64_t K = 0;                    // seeds
  Shape shape;                      // S
  at::TensorOptions options;        // dtype and device of T
  c10::SmallVector<Term, 2> terms;  // none: zero
  bool upper = false;               // holds only what lies on or above the Hessian's diagonal (see Demand)

  bool zero() const { return terms.empty(); }
  int64_t numel() const;  // of S
};

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

// [k_end - k_begin, *S], contiguous or expanded. It may be the memory of a term: read it, do not write.
Tensor dense(const Tangent& t, int64_t k_begin, int64_t k_end);
inline Tensor dense(const Tangent& t) { return dense(t, 0, t.K); }
// Rows of T that can be non-zero: [first, last + 1); {0, 0} for zero.
std::pair<int64_t, int64_t> seed_range(const Tangent& t);
// K = 1: the tensor of shape S (possibly expanded).
Tensor value(const Tangent& t);

// ---- structure ------------------------------------------------------------------------------------------

// Rewrites every term as one dense box [k, *S]; records the op that asked for it.
void densify(Tangent& t);
// The same for a single term.
Term densify(const Tangent& t, const Term& term);
// Only the seeds in [0, k_end).
void restrict_seeds(Tangent& t, int64_t k_end);

// Term by term the same memory in the same places.
bool same(const Tangent& a, const Tangent& b);
// t += other, merging terms of equal core and placement, combining where terms outgrow the dense box
// (`combining` false: never, for sums that go to the assembly as they are).
void accumulate(Tangent& t, Tangent other, bool combining = true);
// The real part, as real numbers; the complex conjugate. Both are T itself if it is real.
Tangent real(Tangent t);
Tangent conj(Tangent t);
// The same where the sum may not have begun (K = 0).
inline void add_to(Tangent& sum, Tangent t) {
  if (sum.K == 0) {
    sum = std::move(t);
  } else {
    accumulate(sum, std::move(t));
  }
}
// A copy in another dtype; of complex values in a real one, the real part.
Tangent cast(Tangent t, at::ScalarType dtype);
// A copy on another device, of what is not there yet.
Tangent moved(Tangent t, c10::Device device);

}  // namespace hesse
