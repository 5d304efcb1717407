#include "contract.h"

#include "kernels/combine.h"
#include "kernels/workspace.h"
#include "ledger.h"

#include <ATen/ATen.h>
#include <c10/core/GradMode.h>

#include <algorithm>

namespace hesse {

namespace {

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
  return kernels::reshape(f.permute(order), {extent(f, x), extent(f, y), extent(f, z)});
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

// lhs @ rhs, [batch, rows, columns].
Tensor matrix_product(const Tensor& lhs, const Tensor& rhs) {
  const bool single = lhs.size(0) == 1;
  if (c10::GradMode::is_enabled()) {
    return single ? at::mm(lhs.squeeze(0), rhs.squeeze(0)).unsqueeze(0) : at::bmm(lhs, rhs);
  }
  Tensor out = kernels::fresh({lhs.size(0), lhs.size(1), rhs.size(2)}, lhs.options());
  if (single) {
    Tensor matrix = out.squeeze(0);
    at::mm_out(matrix, lhs.squeeze(0), rhs.squeeze(0));
  } else {
    at::bmm_out(out, lhs, rhs);
  }
  return out;
}

// lhs @ rhs, only where the column lies on or beyond the row's diagonal.
Tensor upper_product(const Tensor& lhs, const Tensor& rhs, const Axes& left, const Axes& right,
                     const Landing& at) {
  const int64_t rows = lhs.size(0), cols = rhs.size(1), block_rows = kernels::panel_rows(lhs, cols);
  Tensor out = kernels::fresh({rows, cols}, lhs.options());
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
constexpr int64_t longest_sum = 4096;  // the loops add one by one; ATen's sums lose less
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
  // Along any other dimension the product is one value for many places.
  for (size_t d = 0; d < at.dims.size(); ++d) {
    const auto axis = static_cast<int64_t>(d);
    const bool known =
        std::count(left.begin(), left.end(), axis) || std::count(right.begin(), right.end(), axis);
    if (!known && at.dims[d].n > 1 && (at.dims[d].ks != 0 || at.dims[d].vs != 0)) return false;
  }
  return monotone(left, at, &Dim::ks) && monotone(right, at, &Dim::vs);
}

// Two factors, and their axes by what becomes of them.
struct Product {
  Tensor a, b;
  Axes batch, summed, left, right;  // in both; in both and gone; in a; in b
};

void swap_factors(Product& p) {
  std::swap(p.a, p.b);
  std::swap(p.left, p.right);
}

void sort_by_memory(Axes& axes, const Tensor& f) {
  std::stable_sort(axes.begin(), axes.end(),
                   [&f](int64_t x, int64_t y) { return f.stride(x) > f.stride(y); });
}

// Orders the result's memory as the Hessian's, with the seeds as rows.
void sort_by_landing(Product& p, const Landing& landing) {
  auto later = [&landing](int64_t x, int64_t y) {
    const Dim &s = landing.dims[x], &t = landing.dims[y];
    return s.ks != t.ks ? s.ks > t.ks : s.vs > t.vs;
  };
  auto seeded = [&landing](const Axes& axes) {
    return std::any_of(axes.begin(), axes.end(), [&](int64_t d) { return landing.dims[d].ks != 0; });
  };
  std::stable_sort(p.left.begin(), p.left.end(), later);
  std::stable_sort(p.right.begin(), p.right.end(), later);
  if (seeded(p.right) && !seeded(p.left)) swap_factors(p);
}

// The result of a product of flattened axes, with one axis per dimension again.
Tensor unflattened(const Tensor& c, std::initializer_list<const Axes*> groups, const Shape& sizes) {
  Shape shape;
  Axes order(sizes.size(), -1);
  int64_t position = 0;
  for (const Axes* axes : groups) {
    for (int64_t d : *axes) {
      shape.push_back(sizes[d]);
      order[d] = position++;
    }
  }
  for (int64_t& at : order) {
    if (at >= 0) continue;
    shape.push_back(1);
    at = position++;
  }
  return c.reshape(shape).permute(order);
}

// A small b acts on axes in the middle of a, [outer, summed, inner]. One product per outer element leaves a
// where it lies, where one product in all would first have to copy it. Undefined where that is not the case.
Tensor product_in_the_middle(const Product& p, const Shape& sizes) {
  constexpr int64_t worth_a_product = 2048;  // multiplications
  if (!p.batch.empty() || p.summed.empty() || p.right.empty()) return {};
  const int64_t step = p.a.stride(p.summed.back());
  Axes outer, inner;
  for (int64_t d : p.left) (p.a.stride(d) > step ? outer : inner).push_back(d);
  if (outer.empty() || inner.empty()) return {};
  const int64_t rows = extent(p.a, p.summed), columns = extent(p.a, inner), out = extent(p.b, p.right);
  if (rows * columns * out < worth_a_product || columns < 8 || p.b.numel() > p.a.numel()) return {};
  const Tensor a = grouped(p.a, outer, p.summed, inner);
  if (!a.is_alias_of(p.a) || a.stride(2) != 1) return {};
  const Tensor b = grouped(p.b, {}, p.right, p.summed);
  return unflattened(matrix_product(b.expand({a.size(0), out, rows}), a), {&outer, &p.right, &inner}, sizes);
}

// What flattening its axes has made of a factor: a copy, maybe.
void count_copy(Passing& copies, const Tensor& flattened, const Tensor& factor) {
  if (!flattened.is_alias_of(factor)) copies.add(static_cast<int64_t>(flattened.nbytes()));
}

}  // namespace

Tensor contract(Tensor a, Tensor b, const Shape& sizes, const std::vector<bool>& reduce, bool seeded,
                double& alpha, Landing* landing) {
  const bool may_be_upper = landing && landing->upper;
  if (landing) landing->upper = false;
  Product p;
  Axes alone_a, alone_b;
  for (int64_t d = 0; d < static_cast<int64_t>(sizes.size()); ++d) {
    const bool in_a = varies(a, d), in_b = varies(b, d);
    if (reduce[d]) {
      if (!in_a && !in_b) alpha *= static_cast<double>(sizes[d]);
      if (in_a || in_b) (in_a && in_b ? p.summed : in_a ? alone_a : alone_b).push_back(d);
    } else if (in_a || in_b) {
      (in_a && in_b ? p.batch : in_a ? p.left : p.right).push_back(d);
    }
  }
  auto sum_alone = [seeded](Tensor& f, const Axes& axes) {
    if (axes.empty()) return;
    if (seeded) {
      ledger().flops += f.numel();
      ledger().reserve(f.numel() / extent(f, axes), f.element_size());
    }
    f = f.sum(axes, /*keepdim=*/true);
  };
  sum_alone(a, alone_a);
  sum_alone(b, alone_b);
  if (!a.defined()) return b;
  if (!b.defined()) return a;
  p.a = a;
  p.b = b;
  const int64_t out = extent(a, p.batch) * extent(a, p.left) * extent(b, p.right);
  if (seeded) ledger().reserve(out, a.element_size());
  if (p.summed.empty()) return kernels::multiply(a, b);

  const int64_t work = out * extent(a, p.summed);
  const bool vector = !p.batch.empty() && (p.left.empty() || p.right.empty());
  if (seeded && !vector) ledger().gemms += 1;
  auto spend = [&] {
    if (seeded) ledger().flops += 2 * work;
  };
  if (thin(extent(a, p.left), extent(b, p.right), !p.batch.empty(), work)) {
    const bool loops = kernels::has_loops(a, b) && extent(a, p.summed) <= longest_sum;
    if (loops || work <= most_in_one_pass) {
      spend();
      return loops ? kernels::dot(a, b, reduce) : at::mul(a, b).sum(p.summed, /*keepdim=*/true);
    }
  }
  // Axes of a group are ordered by memory so that flattening them is a view where possible.
  sort_by_memory(p.left, a);
  sort_by_memory(p.right, b);
  if (landing) sort_by_landing(p, *landing);
  const Tensor large = a.numel() >= b.numel() ? a : b;
  sort_by_memory(p.batch, large);
  sort_by_memory(p.summed, large);
  if (!landing) {
    if (large.is_same(p.b)) swap_factors(p);
    const Tensor c = product_in_the_middle(p, sizes);
    if (c.defined()) {
      spend();
      return c;
    }
  }
  const Tensor lhs = grouped(p.a, p.batch, p.left, p.summed);
  const Tensor rhs = grouped(p.b, p.batch, p.summed, p.right);
  Passing copies;
  if (seeded) {
    count_copy(copies, lhs, p.a);
    count_copy(copies, rhs, p.b);
  }
  Tensor c;
  if (may_be_upper && p.batch.empty()) {
    landing->upper = true;
    landing->upper = wants_upper(*landing, p.left, p.right, lhs.size(1), rhs.size(2));
  }
  if (landing && landing->upper) {
    c = upper_product(lhs.squeeze(0), rhs.squeeze(0), p.left, p.right, *landing);
  } else {
    spend();
    c = matrix_product(lhs, rhs);
  }
  return unflattened(c, {&p.batch, &p.left, &p.right}, sizes);
}

}  // namespace hesse
