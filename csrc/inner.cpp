#include "inner.h"

#include "contract.h"
#include "kernels/combine.h"
#include "ledger.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>

namespace hesse {

namespace {

// One index of the sum of two terms: where it moves seeds and factors. Seeds are counted in groups of n and
// within them; a dimension moves one of the two.
struct Letter {
  int64_t n;
  int64_t a = -1, b = -1;  // dimension of either term
};

// Two terms as one sum over letters.
struct Meeting {
  Term a, b;
  Placement at_a, at_b;
  std::vector<Letter> letters;
  bool empty = false;  // they have no element of the value in common
};

void narrow(Term& term, int64_t d, int64_t from, int64_t n) {
  for (Tensor* f : {&term.coef, &term.core}) {
    if (varies(*f, d)) *f = f->narrow(d, from, n);
  }
  Dim& dim = term.dims[d];
  if (dim.k) {
    dim.k = hold(term, dim.k->index.slice(0, from, from + n), dim.k->size);
  } else {
    term.k0 += from * dim.ks;
  }
  term.v0 += from * dim.vs;
  dim.n = n;
}

Shape dims_on(const Placement& p, int64_t axis) {
  Shape on;
  for (size_t d = 0; d < p.axis.size(); ++d) {
    if (p.axis[d] == axis) on.push_back(static_cast<int64_t>(d));
  }
  std::sort(on.begin(), on.end(), [&p](int64_t x, int64_t y) { return p.step[x] > p.step[y]; });
  return on;
}

// Cuts a dimension that alone runs along an axis where the other term has two.
bool split_alike(Term& one, const Term& two, const Placement& at_one, const Placement& at_two, int64_t axis,
                 c10::IntArrayRef shape, Placement& renewed) {
  const Shape on_one = dims_on(at_one, axis), on_two = dims_on(at_two, axis);
  if (on_one.size() != 1 || on_two.size() != 2) return false;
  const int64_t d = on_one[0], inner = two.dims[on_two[1]].n, step = at_one.step[d];
  if (one.dims[d].indexed() || at_two.step[on_two[1]] != step || at_two.step[on_two[0]] != step * inner ||
      one.dims[d].n % inner != 0)
    return false;
  split_dim(one, d, inner);
  return place(one, shape, renewed);
}

// Along one axis; false where the two are not alike.
bool meet_along(Meeting& m, int64_t axis, c10::IntArrayRef shape) {
  if (dims_on(m.at_a, axis).size() < dims_on(m.at_b, axis).size()) {
    if (dims_on(m.at_a, axis).size() == 1) split_alike(m.a, m.b, m.at_a, m.at_b, axis, shape, m.at_a);
  } else if (dims_on(m.at_b, axis).size() == 1) {
    split_alike(m.b, m.a, m.at_b, m.at_a, axis, shape, m.at_b);
  }
  const Shape on_a = dims_on(m.at_a, axis), on_b = dims_on(m.at_b, axis);
  int64_t distance = m.at_b.offset[axis] - m.at_a.offset[axis];
  if (on_a.empty() && on_b.empty()) {
    m.empty = m.empty || distance != 0;
    return true;
  }
  // One of them is at one place of what the other runs along.
  auto pick = [&](Term& runs, int64_t d, int64_t step, int64_t ahead) {
    const bool there = ahead >= 0 && ahead % step == 0 && ahead / step < runs.dims[d].n;
    m.empty = m.empty || !there;
    if (there) narrow(runs, d, ahead / step, 1);
    return true;
  };
  if (on_a.size() == 1 && on_b.empty()) return pick(m.a, on_a[0], m.at_a.step[on_a[0]], distance);
  if (on_b.size() == 1 && on_a.empty()) return pick(m.b, on_b[0], m.at_b.step[on_b[0]], -distance);
  if (on_a.size() != on_b.size()) return false;
  if (on_a.size() == 1) {
    const int64_t da = on_a[0], db = on_b[0], step = m.at_a.step[da];
    if (m.at_b.step[db] != step || step <= 0) return false;
    if (distance % step != 0) {
      m.empty = true;
      return true;
    }
    distance /= step;
    const int64_t first = std::max<int64_t>(0, distance);
    const int64_t last = std::min(m.a.dims[da].n, m.b.dims[db].n + distance);
    if (first >= last) {
      m.empty = true;
      return true;
    }
    narrow(m.a, da, first, last - first);
    narrow(m.b, db, first - distance, last - first);
    return true;
  }
  if (distance != 0) return false;
  for (size_t i = 0; i < on_a.size(); ++i) {
    if (m.at_a.step[on_a[i]] != m.at_b.step[on_b[i]] || m.a.dims[on_a[i]].n != m.b.dims[on_b[i]].n)
      return false;
    // Each place of the axis is reached once.
    if (i > 0 && m.a.dims[on_a[i]].n * m.at_a.step[on_a[i]] > m.at_a.step[on_a[i - 1]]) return false;
  }
  return true;
}

// Splits seed dimensions that run through groups; false where they do not begin at a group's start.
bool by_groups(Term& term, int64_t n) {
  int64_t within = term.k0 % n;
  for (int64_t d = 0; d < term.rank(); ++d) {
    const Dim dim = term.dims[d];
    if (dim.ks < 0 || (dim.k && dim.ks % n == 0)) return false;
    if (dim.ks == 0 || dim.ks % n == 0 || (dim.n == 1 && !dim.k)) continue;
    if ((dim.seed_extent() - 1) * dim.ks >= n) {
      if (dim.k || n % dim.ks != 0 || dim.n % (n / dim.ks) != 0) return false;
      split_dim(term, d, n / dim.ks);
      continue;  // with the inner part
    }
    within += (dim.seed_extent() - 1) * dim.ks;
  }
  return within < n;
}

// The letters of two terms that lie alike on every axis; false where groups of the one do not go along with
// those of the other.
bool spell(Meeting& m, int64_t n) {
  std::vector<bool> used_b(m.b.rank(), false);
  for (int64_t d = 0; d < m.a.rank(); ++d) {
    Letter letter{m.a.dims[d].n, d, -1};
    if (m.at_a.axis[d] >= 0) {
      for (int64_t e = 0; e < m.b.rank(); ++e) {
        if (!used_b[e] && m.at_b.axis[e] == m.at_a.axis[d] && m.at_b.step[e] == m.at_a.step[d]) letter.b = e;
      }
    }
    if (letter.b >= 0) used_b[letter.b] = true;
    m.letters.push_back(letter);
  }
  for (int64_t e = 0; e < m.b.rank(); ++e) {
    if (!used_b[e]) m.letters.push_back({m.b.dims[e].n, -1, e});
  }
  // A letter that counts groups on one side only becomes one with its like on the other.
  auto group_step = [n](const Term& t, int64_t d) {
    return d >= 0 && t.dims[d].n > 1 && t.dims[d].ks % n == 0 ? t.dims[d].ks : 0;
  };
  for (size_t i = 0; i < m.letters.size(); ++i) {
    const int64_t step_a = group_step(m.a, m.letters[i].a), step_b = group_step(m.b, m.letters[i].b);
    if (step_a == step_b) continue;
    if (step_a != 0 && step_b != 0) return false;
    bool found = false;
    for (size_t j = i + 1; j < m.letters.size() && !found; ++j) {
      Letter &one = m.letters[i], &two = m.letters[j];
      const bool fits = step_a != 0 ? one.b < 0 && two.a < 0 && group_step(m.b, two.b) == step_a
                                    : one.a < 0 && two.b < 0 && group_step(m.a, two.a) == step_b;
      if (!fits || one.n != two.n) continue;
      (step_a != 0 ? one.b : one.a) = step_a != 0 ? two.b : two.a;
      m.letters.erase(m.letters.begin() + static_cast<int64_t>(j));
      found = true;
    }
    if (!found) return false;
  }
  return m.a.k0 / n == m.b.k0 / n;
}

// A factor with one axis per letter.
Tensor lettered(const Tensor& f, const std::vector<Letter>& letters, bool of_a) {
  if (!f.defined()) return f;
  Shape size, stride;
  for (const Letter& letter : letters) {
    const int64_t d = of_a ? letter.a : letter.b;
    const bool moves = d >= 0 && varies(f, d);
    size.push_back(moves ? f.size(d) : 1);
    stride.push_back(moves ? f.stride(d) : 0);
  }
  return f.as_strided(size, stride, f.storage_offset());
}

Tensor times(const Tensor& a, const Tensor& b) {
  return !a.defined() ? b : !b.defined() ? a : kernels::multiply(a, b);
}

// The sum over what moves no seed, as out is laid out.
struct Sum {
  Shape sizes, strides;
  std::vector<bool> reduce;
  bool by_index = false;
};

// Whether a letter moves seeds by index, on either side.
bool picked(const Meeting& m, const Letter& letter) {
  return (letter.a >= 0 && m.a.dims[letter.a].k) || (letter.b >= 0 && m.b.dims[letter.b].k);
}

// Nothing where different letters name the same element of out, unless these go by index anyway.
std::optional<Sum> sum_of(const Meeting& m, int64_t n) {
  Sum sum;
  std::vector<std::pair<int64_t, int64_t>> moves;  // stride, size
  for (const Letter& letter : m.letters) {
    const int64_t ka = letter.a >= 0 ? m.a.dims[letter.a].ks : 0;
    const int64_t kb = letter.b >= 0 ? m.b.dims[letter.b].ks : 0;
    const bool groups = ka != 0 && ka % n == 0;
    sum.sizes.push_back(letter.n);
    sum.strides.push_back(groups ? ka * n : ka * n + kb);
    sum.reduce.push_back(ka == 0 && kb == 0);
    if (sum.strides.back() != 0 && letter.n > 1) moves.emplace_back(sum.strides.back(), letter.n);
    sum.by_index = sum.by_index || picked(m, letter);
  }
  if (sum.by_index) return sum;
  std::sort(moves.begin(), moves.end());
  int64_t reach = 0;
  for (const auto& [stride, size] : moves) {
    if (stride <= reach) return std::nullopt;
    reach += stride * (size - 1);
  }
  return sum;
}

// Where in out the sum belongs, for each of its letters.
Tensor places(const Meeting& m, const Sum& sum, int64_t offset, int64_t n, at::Device device) {
  const auto options = at::TensorOptions(device).dtype(at::kLong);
  Tensor at = at::full({}, offset, options);
  for (size_t i = 0; i < m.letters.size(); ++i) {
    if (sum.reduce[i]) continue;
    const Letter& letter = m.letters[i];
    const Tensor steps = at::arange(letter.n, options);
    Tensor along = steps * sum.strides[i];
    if (picked(m, letter)) {
      auto moved = [&](const Term& term, int64_t d) {
        return d < 0 ? at::zeros({letter.n}, options)
                     : (term.dims[d].k ? term.dims[d].k->index : steps) * term.dims[d].ks;
      };
      along = moved(m.a, letter.a) * n + moved(m.b, letter.b);
    }
    Shape size(m.letters.size(), 1);
    size[i] = letter.n;
    at = at + along.view(size);
  }
  return at;
}

// Of complex values the real part, in the dtype of H.
Tensor as_entries(const Tensor& c, const Tensor& out) {
  if (!c.defined()) return c;
  return (c.is_complex() ? at::real(c) : c).to(out.scalar_type());
}

void add_sum(const Tensor& out, const Meeting& m, const Sum& sum) {
  const int64_t n = out.size(1);
  // Coefs are small: they meet each other first.
  const Tensor coef = times(lettered(m.a.coef, m.letters, true), lettered(m.b.coef, m.letters, false));
  Tensor a = lettered(m.a.core, m.letters, true), b = lettered(m.b.core, m.letters, false);
  if (!a.defined()) {
    a = coef;
  } else if (!b.defined()) {
    b = coef;
  } else if (coef.defined()) {
    Tensor& lesser = b.numel() <= a.numel() ? b : a;
    ledger().reserve(lesser.numel(), lesser.element_size());
    lesser = kernels::multiply(lesser, coef);
  }
  double alpha = m.a.alpha * m.b.alpha;
  const Tensor c = as_entries(contract(a, b, sum.sizes, sum.reduce, true, alpha), out);
  Shape sizes = sum.sizes;
  for (size_t i = 0; i < sizes.size(); ++i) sizes[i] = sum.reduce[i] ? 1 : sizes[i];
  const int64_t offset = m.a.k0 / n * n * n + (m.a.k0 % n) * n + m.b.k0 % n;
  if (sum.by_index) {
    const Tensor entries = c.defined() ? c.expand(sizes) * alpha : at::full(sizes, alpha, out.options());
    out.view({-1}).index_add_(0, places(m, sum, offset, n, out.device()).expand(sizes).reshape({-1}),
                              entries.reshape({-1}));
    return;
  }
  kernels::combine(kernels::Into::add, out, sizes, sum.strides, offset, c, {}, alpha);
}

// Nothing where the two terms are not placed alike.
std::optional<Meeting> meeting(const Term& a, const Term& b, c10::IntArrayRef shape, int64_t n) {
  Meeting m{a, b, {}, {}, {}, false};
  squeeze(m.a);
  squeeze(m.b);
  auto scattered = [](const Term& t) {
    return std::any_of(t.dims.begin(), t.dims.end(), [](const Dim& d) { return d.v; });
  };
  if (scattered(a) || scattered(b) || !by_groups(m.a, n) || !by_groups(m.b, n)) return std::nullopt;
  if (!place(m.a, shape, m.at_a) || !place(m.b, shape, m.at_b)) return std::nullopt;
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    if (!meet_along(m, static_cast<int64_t>(axis), shape)) return std::nullopt;
    if (m.empty) return m;
  }
  squeeze(m.a);
  squeeze(m.b);
  if (!by_groups(m.a, n) || !by_groups(m.b, n) || !place(m.a, shape, m.at_a) || !place(m.b, shape, m.at_b))
    return std::nullopt;
  if (!spell(m, n)) return std::nullopt;
  return m;
}

}  // namespace

void add_inner(const Tensor& out, Tangent a, const Tangent& b) {
  const int64_t groups = out.size(0), n = out.size(1);
  a = conj(std::move(a));
  std::vector<std::pair<Meeting, Sum>> meetings;
  bool alike = true;
  for (const Term& one : a.terms) {
    for (const Term& two : b.terms) {
      auto m = alike ? meeting(one, two, a.shape, n) : std::nullopt;
      const auto sum = m && !m->empty ? sum_of(*m, n) : std::nullopt;
      alike = m && (m->empty || sum);
      if (sum) meetings.emplace_back(std::move(*m), *sum);
    }
  }
  if (alike) {
    for (const auto& [m, sum] : meetings) add_sum(out, m, sum);
    return;
  }
  ledger().densified.insert(ledger().op);
  const Tensor rows_a = dense(a).reshape({groups, n, -1}), rows_b = dense(b).reshape({groups, n, -1});
  Tensor sum = out;
  sum.add_(
      as_entries(n == 1 ? (rows_a * rows_b).sum(-1, /*keepdim=*/true) : at::bmm(rows_a, rows_b.mT()), out));
}

}  // namespace hesse
