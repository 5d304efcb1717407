#include "contract.h"

#include "kernels/combine.h"
#include "ledger.h"

#include <ATen/ATen.h>

#include <algorithm>

namespace hesse {

namespace {

bool varies(const Tensor& f, int64_t d) { return f.defined() && f.size(d) > 1; }

using Axes = c10::SmallVector<int64_t, 6>;

int64_t extent(const Tensor& f, const Axes& axes) {
  int64_t n = 1;
  for (int64_t d : axes) n *= f.size(d);
  return n;
}

// f with its axes ordered as three groups, each flattened.
Tensor grouped(const Tensor& f, const Axes& x, const Axes& y, const Axes& z) {
  Axes order;
  order.append(x.begin(), x.end());
  order.append(y.begin(), y.end());
  order.append(z.begin(), z.end());
  Axes rest;
  for (int64_t d = 0; d < f.dim(); ++d) {
    if (std::find(order.begin(), order.end(), d) == order.end()) rest.push_back(d);  // size 1
  }
  order.append(rest.begin(), rest.end());
  return f.permute(order).reshape({extent(f, x), extent(f, y), extent(f, z)});
}

// Index of element i along a flattened group of axes, by one of their strides.
int64_t position(int64_t i, const Axes& axes, const Landing& at, int64_t Dim::* stride) {
  int64_t sum = 0;
  for (size_t d = axes.size(); d-- > 0;) {
    const Dim& dim = at.dims[axes[d]];
    sum += i % dim.n * (dim.*stride);
    i /= dim.n;
  }
  return sum;
}

// Positions grow along the flattened group.
bool monotone(const Axes& axes, const Landing& at, int64_t Dim::* stride) {
  int64_t reach = 0;
  for (size_t d = axes.size(); d-- > 0;) {
    const Dim& dim = at.dims[axes[d]];
    if (dim.*stride <= reach) return false;
    reach += (dim.n - 1) * (dim.*stride);
  }
  return true;
}

// lhs @ rhs, only where the column lies on or beyond the row's diagonal.
Tensor upper_product(const Tensor& lhs, const Tensor& rhs, const Axes& left, const Axes& right,
                     const Landing& at) {
  constexpr int64_t block_rows = 128;
  const int64_t rows = lhs.size(0), cols = rhs.size(1);
  Tensor out = at::empty({rows, cols}, lhs.options());
  for (int64_t r = 0; r < rows; r += block_rows) {
    const int64_t r_end = std::min(r + block_rows, rows);
    const int64_t k = at.k0 + position(r, left, at, &Dim::ks);
    int64_t lo = 0, hi = cols;  // first column with v + v_shift >= k
    while (lo < hi) {
      const int64_t mid = (lo + hi) / 2;
      if (at.v0 + at.v_shift + position(mid, right, at, &Dim::vs) >= k) {
        hi = mid;
      } else {
        lo = mid + 1;
      }
    }
    if (lo == cols) continue;
    Tensor place = out.slice(0, r, r_end).slice(1, lo);
    at::mm_out(place, lhs.slice(0, r, r_end), rhs.slice(1, lo));
    ledger().flops += 2 * (r_end - r) * (cols - lo) * lhs.size(1);
  }
  return out;
}

// Products so small, or so thin and many, that a matrix product costs more in overhead than in arithmetic.
constexpr int64_t most_in_one_pass = int64_t{1} << 20;
bool thin(int64_t left, int64_t right, bool batched, int64_t work) {
  constexpr int64_t small_work = 4096, small_result = 16;
  return work <= small_work || (batched && (left == 1 || right == 1 || left * right <= small_result));
}

bool wants_upper(const Landing& at, const Axes& left, const Axes& right, int64_t rows, int64_t cols) {
  constexpr int64_t least_rows = 32, least_columns = 256;
  if (!at.upper || rows < least_rows || cols < least_columns) return false;
  for (int64_t d : left) {
    if (at.dims[d].vs != 0) return false;
  }
  for (int64_t d : right) {
    if (at.dims[d].ks != 0) return false;
  }
  return monotone(left, at, &Dim::ks) && monotone(right, at, &Dim::vs);
}

}  // namespace

Tensor contract(Tensor a, Tensor b, const Shape& sizes, const std::vector<bool>& reduce, bool seeded,
                double& alpha, Landing* landing) {
  const bool may_be_upper = landing && landing->upper;
  if (landing) landing->upper = false;
  const int64_t rank = static_cast<int64_t>(sizes.size());
  Axes alone_a, alone_b, batch, summed, left, right;
  for (int64_t d = 0; d < rank; ++d) {
    const bool in_a = varies(a, d), in_b = varies(b, d);
    if (reduce[d]) {
      if (in_a && in_b) {
        summed.push_back(d);
      } else if (in_a) {
        alone_a.push_back(d);
      } else if (in_b) {
        alone_b.push_back(d);
      } else {
        alpha *= static_cast<double>(sizes[d]);
      }
    } else if (in_a && in_b) {
      batch.push_back(d);
    } else if (in_a) {
      left.push_back(d);
    } else if (in_b) {
      right.push_back(d);
    }
  }
  if (!alone_a.empty()) {
    if (seeded) ledger().flops += a.numel();
    a = a.sum(alone_a, /*keepdim=*/true);
  }
  if (!alone_b.empty()) {
    if (seeded) ledger().flops += b.numel();
    b = b.sum(alone_b, /*keepdim=*/true);
  }
  if (!a.defined()) return b;
  if (!b.defined()) return a;
  int64_t out = 1;
  for (const Axes* axes : {&batch, &left, &right}) {
    for (int64_t d : *axes) out *= sizes[d];
  }
  if (seeded) ledger().reserve(out, a.element_size());
  if (summed.empty()) return kernels::multiply(a, b);

  const int64_t work = out * extent(a, summed);
  const bool vector = !batch.empty() && (left.empty() || right.empty());
  if (seeded && !vector) ledger().gemms += 1;
  if (thin(extent(a, left), extent(b, right), !batch.empty(), work)) {
    if (seeded) ledger().flops += 2 * work;
    if (kernels::has_loops(a, b)) return kernels::dot(a, b, reduce);
    if (work <= most_in_one_pass) return at::mul(a, b).sum(summed, /*keepdim=*/true);
  }
  // Axes of a group are ordered by memory so that flattening them is a view where possible.
  auto by_stride = [](const Tensor& f) {
    return [&f](int64_t x, int64_t y) { return f.stride(x) > f.stride(y); };
  };
  std::stable_sort(left.begin(), left.end(), by_stride(a));
  std::stable_sort(right.begin(), right.end(), by_stride(b));
  if (landing) {
    auto by_landing = [landing](int64_t x, int64_t y) {
      const Dim &p = landing->dims[x], &q = landing->dims[y];
      return p.ks != q.ks ? p.ks > q.ks : p.vs > q.vs;
    };
    std::stable_sort(left.begin(), left.end(), by_landing);
    std::stable_sort(right.begin(), right.end(), by_landing);
    // Seeds index the rows.
    const bool seeds_right =
        std::any_of(right.begin(), right.end(), [&](int64_t d) { return landing->dims[d].ks != 0; });
    const bool seeds_left =
        std::any_of(left.begin(), left.end(), [&](int64_t d) { return landing->dims[d].ks != 0; });
    if (seeds_right && !seeds_left) {
      std::swap(a, b);
      std::swap(left, right);
    }
  }
  const Tensor large = a.numel() >= b.numel() ? a : b;
  std::stable_sort(batch.begin(), batch.end(), by_stride(large));
  std::stable_sort(summed.begin(), summed.end(), by_stride(large));
  const Tensor lhs = grouped(a, batch, left, summed);
  const Tensor rhs = grouped(b, batch, summed, right);
  Tensor c;
  if (may_be_upper && batch.empty()) {
    landing->upper = true;
    landing->upper = wants_upper(*landing, left, right, lhs.size(1), rhs.size(2));
  }
  if (landing && landing->upper) {
    c = upper_product(lhs.squeeze(0), rhs.squeeze(0), left, right, *landing);
  } else {
    if (seeded) ledger().flops += 2 * out * extent(a, summed);
    c = batch.empty() ? at::mm(lhs.squeeze(0), rhs.squeeze(0)) : at::bmm(lhs, rhs);
  }

  Shape unflat;
  Axes order(rank, -1);
  int64_t position = 0;
  for (const Axes* axes : {&batch, &left, &right}) {
    for (int64_t d : *axes) {
      unflat.push_back(sizes[d]);
      order[d] = position++;
    }
  }
  for (int64_t d = 0; d < rank; ++d) {
    if (order[d] < 0) {
      unflat.push_back(1);
      order[d] = position++;
    }
  }
  return c.reshape(unflat).permute(order);
}

}  // namespace hesse
