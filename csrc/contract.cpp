#include "contract.h"

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

}  // namespace

Tensor contract(Tensor a, Tensor b, const Shape& sizes, const std::vector<bool>& reduce, bool seeded, double& alpha) {
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
  if (summed.empty()) return at::mul(a, b);

  if (seeded) {
    ledger().flops += 2 * out * extent(a, summed);
    ledger().gemms += 1;
  }
  // Axes of a group are ordered by memory so that flattening them is a view where possible.
  auto by_stride = [](const Tensor& f) {
    return [&f](int64_t x, int64_t y) { return f.stride(x) > f.stride(y); };
  };
  std::stable_sort(left.begin(), left.end(), by_stride(a));
  std::stable_sort(right.begin(), right.end(), by_stride(b));
  const Tensor& large = a.numel() >= b.numel() ? a : b;
  std::stable_sort(batch.begin(), batch.end(), by_stride(large));
  std::stable_sort(summed.begin(), summed.end(), by_stride(large));
  const Tensor lhs = grouped(a, batch, left, summed);
  const Tensor rhs = grouped(b, batch, summed, right);
  Tensor c = batch.empty() ? at::mm(lhs.squeeze(0), rhs.squeeze(0)) : at::bmm(lhs, rhs);

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
