// A tie of n cuts seeds and values into blocks: position k is (outer n + i) stride + inner, where i counts
// along the tie, and v likewise. A term that has the tie, and whose other dimensions cross no block, is zero
// but where both have the same i. Terms that share ties add up to one box that has them too, and is dense
// beside them.
#include "combine.h"

#include "reads.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <vector>

namespace hesse {

namespace {

using Dims = c10::SmallVector<Dim, 6>;

constexpr size_t many_terms = 24;

// What a factor of the size of the value can still end (see select) it cannot inside of a box, which has to
// be told. Only what the host has can be seen.
void look_for_nan(Term& term) {
  if (!term.coef.defined() || !readable(term.coef) || term.spoiled) return;
  term.spoiled = !holds(at::isfinite(at::real(term.coef.detach()).sum()));
}

int64_t held_by(const Term& term) { return term.core.defined() ? term.core.numel() : 1; }

// Terms that hold so much, and are so many, are better off in a box of this size.
bool outgrows(int64_t held, size_t terms, int64_t box) {
  return terms > 1 && (held >= box || (terms >= many_terms && 16 * held >= box));
}

int64_t seeds(const Dim& d) { return d.ks; }
int64_t values(const Dim& d) { return d.vs; }
bool is_tie(const Dim& d) { return d.ks > 0 && d.vs > 0 && d.n > 1 && !d.indexed(); }

// Whether `tie` is a dimension, or the outer part of one that goes on `inner` times within its blocks.
bool leads(const Dim& own, const Dim& tie, int64_t& inner) {
  if (own == tie) {
    inner = 1;
    return true;
  }
  if (!is_tie(own) || own.n <= tie.n || tie.ks % own.ks != 0) return false;
  inner = tie.ks / own.ks;
  return own.n == tie.n * inner && tie.vs == own.vs * inner;
}

bool has(const Term& term, const Dim& tie) {
  int64_t inner;
  return std::any_of(term.dims.begin(), term.dims.end(),
                     [&](const Dim& own) { return leads(own, tie, inner); });
}

// Splits dimensions until each of the ties is one of them. Tells which; nothing where a tie is not there.
template <class Split>
std::optional<Shape> expose(Dims& dims, const Dims& ties, Split split) {
  Shape at;
  for (const Dim& tie : ties) {
    int64_t d = 0, inner = 1;
    const auto rank = static_cast<int64_t>(dims.size());
    while (d < rank && !leads(dims[d], tie, inner)) ++d;
    if (d == rank) return std::nullopt;
    if (inner > 1) {
      const Dim own = dims[d];
      dims[d] = tie;
      dims.insert(dims.begin() + d + 1, {inner, own.ks, own.vs});
      for (int64_t& other : at) other += other > d ? 1 : 0;
      split(d, inner);
    }
    at.push_back(d);
  }
  return at;
}

std::optional<Shape> expose(Dims& dims, const Dims& ties) {
  return expose(dims, ties, [](int64_t, int64_t) {});
}

// Seeds or values beside the ties: digits of a position, outermost first. Digit j counts in units, up to a
// radix; terms reach a part of it.
struct Digit {
  int64_t unit, radix;
  int64_t first = std::numeric_limits<int64_t>::max(), end = 0;
  int64_t size() const { return end - first; }
};

struct Side {
  c10::SmallVector<Digit, 4> digits;

  int64_t size() const {
    int64_t n = 1;
    for (const Digit& d : digits) n *= d.size();
    return n;
  }
  size_t of(int64_t step) const {
    size_t j = 0;
    while (step % digits[j].unit != 0) ++j;
    return j;
  }
  // Widens to what a term reaches from its start beside the ties; false if it crosses blocks.
  template <class Step>
  bool reach(const Dims& dims, const Shape& ties, int64_t start, Step step) {
    if (start < 0) return false;
    c10::SmallVector<int64_t, 4> first, last;
    for (const Digit& d : digits) {
      first.push_back(start / d.unit);
      start %= d.unit;
      if (first.back() >= d.radix) return false;  // not at the start of a tie
    }
    last = first;
    for (int64_t d = 0; d < static_cast<int64_t>(dims.size()); ++d) {
      const int64_t s = step(dims[d]);
      if (s < 0 || dims[d].indexed()) return false;
      if (s == 0 || std::find(ties.begin(), ties.end(), d) != ties.end()) continue;
      const size_t j = of(s);
      last[j] += (dims[d].n - 1) * (s / digits[j].unit);
    }
    for (size_t j = 0; j < digits.size(); ++j) {
      if (last[j] >= digits[j].radix) return false;
      digits[j].first = std::min(digits[j].first, first[j]);
      digits[j].end = std::max(digits[j].end, last[j] + 1);
    }
    return true;
  }
  // Where a start or a step leads among the positions that are reached, counted without gaps.
  int64_t start(int64_t at) const {
    int64_t packed = 0;
    for (const Digit& d : digits) {
      packed = packed * d.size() + at / d.unit - d.first;
      at %= d.unit;
    }
    return packed;
  }
  int64_t step(int64_t s) const {
    if (s == 0) return 0;
    const size_t j = of(s);
    int64_t packed = s / digits[j].unit;
    for (size_t i = j + 1; i < digits.size(); ++i) packed *= digits[i].size();
    return packed;
  }
  int64_t begin() const {
    int64_t at = 0;
    for (const Digit& d : digits) at += d.first * d.unit;
    return at;
  }
};

// nothing: the ties do not lie within each other's blocks.
template <class Step>
std::optional<Side> side_of(Dims ties, int64_t positions, Step step) {
  std::sort(ties.begin(), ties.end(), [&](const Dim& a, const Dim& b) { return step(a) > step(b); });
  Side side;
  int64_t above = positions;
  for (const Dim& tie : ties) {
    const int64_t period = tie.n * step(tie);
    if (above % period != 0) return std::nullopt;
    side.digits.push_back({period, above / period});
    above = step(tie);
  }
  side.digits.push_back({1, above});
  return side;
}

// Terms that share ties, and the box that they would be.
struct Group {
  Dims ties;
  int64_t first;  // seed
  Side k, v;
  std::vector<size_t> members;
  int64_t held = 0;

  int64_t size() const {
    int64_t n = k.size() * v.size();
    for (const Dim& tie : ties) n *= tie.n;
    return n;
  }
};

// The leader's ties that all terms with this one have.
Dims shared_ties(const Tangent& t, const Term& leader, const Dim& tie) {
  Dims ties;
  for (const Dim& d : leader.dims) {
    if (is_tie(d)) ties.push_back(d);
  }
  std::sort(ties.begin(), ties.end(), [](const Dim& a, const Dim& b) { return a.ks > b.ks; });
  for (const Term& term : t.terms) {
    if (!has(term, tie)) continue;
    Dims dims = term.dims, common;
    if (expose(dims, ties)) continue;
    for (const Dim& d : ties) {
      Dims both = common;
      both.push_back(d);
      dims = term.dims;
      if (expose(dims, both)) common = both;
    }
    ties = common;
  }
  return ties;
}

// Seeds are counted from the leader's first, and no other term may reach beyond its last: they are of one
// input.
std::optional<Group> group_of(const Tangent& t, const Term& leader, Dims ties) {
  const auto [first, last] = leader.seed_range();
  if (ties.empty()) return std::nullopt;
  const int64_t period = ties[0].n * ties[0].ks;  // of the outermost
  const auto k = side_of(ties, (last - first + period - 1) / period * period, seeds),
             v = side_of(ties, t.numel(), values);
  if (!k || !v) return std::nullopt;
  Group g{std::move(ties), first, *k, *v, {}};
  for (size_t i = 0; i < t.terms.size(); ++i) {
    const Term& term = t.terms[i];
    if (term.seed_range().second > last) continue;
    Dims dims = term.dims;
    const auto at = expose(dims, g.ties);
    Side k_too = g.k, v_too = g.v;
    if (!at || !k_too.reach(dims, *at, term.k0 - first, seeds) || !v_too.reach(dims, *at, term.v0, values)) {
      continue;
    }
    g.k = k_too;
    g.v = v_too;
    g.held += held_by(term);
    g.members.push_back(i);
  }
  if (g.members.size() < 2) return std::nullopt;
  // Of the values all, so that the box lies along their axes.
  for (Digit& d : g.v.digits) d = {d.unit, d.radix, 0, d.radix};
  return g;
}

// Rows are counted along the ties, then along the digits of the seeds.
Term sum_of(Tangent& t, const Group& g) {
  Tangent rows;
  rows.K = g.size() / g.v.size();
  rows.shape = {g.v.size()};
  rows.options = t.options;
  Shape tie_step(g.ties.size());
  int64_t step = g.k.size();
  for (size_t i = g.ties.size(); i-- > 0; step *= g.ties[i].n) tie_step[i] = step;
  for (size_t m : g.members) {
    Term term = std::move(t.terms[m]);
    look_for_nan(term);
    Dims dims = term.dims;
    const Shape at = *expose(dims, g.ties, [&](int64_t d, int64_t inner) { split_dim(term, d, inner); });
    for (int64_t d = 0; d < term.rank(); ++d) {
      const auto tie = std::find(at.begin(), at.end(), d);
      Dim& dim = term.dims[d];
      dim = tie != at.end() ? Dim{dim.n, tie_step[tie - at.begin()], 0}
                            : Dim{dim.n, g.k.step(dim.ks), g.v.step(dim.vs)};
    }
    term.k0 = g.k.start(term.k0 - g.first);
    term.v0 = g.v.start(term.v0);
    rows.terms.push_back(std::move(term));
  }
  densify(rows);
  Term box;
  box.dims = g.ties;
  for (const Digit& d : g.k.digits) box.dims.push_back({d.size(), d.unit, 0});
  for (const Digit& d : g.v.digits) box.dims.push_back({d.size(), 0, d.unit});
  box.k0 = g.first + g.k.begin();
  box.core = dense(rows).reshape(sizes_of(box));
  box.owned = true;
  box.spoiled = rows.terms[0].spoiled;
  squeeze(box);
  return box;
}

// Sums terms that share ties where that pays.
bool combine_blocks(Tangent& t) {
  std::vector<std::pair<Dim, std::pair<int64_t, int64_t>>> seen;
  for (const Term& leader : t.terms) {
    for (const Dim& tie : leader.dims) {
      if (!is_tie(tie)) continue;
      const std::pair candidate{tie, leader.seed_range()};
      if (std::find(seen.begin(), seen.end(), candidate) != seen.end()) continue;
      seen.push_back(candidate);
      int64_t held = 0;
      size_t terms = 0;
      for (const Term& term : t.terms) {
        if (!has(term, tie)) continue;
        held += held_by(term);
        ++terms;
      }
      if (!outgrows(held, terms, t.numel())) continue;  // no box is smaller
      const auto group = group_of(t, leader, shared_ties(t, leader, tie));
      if (!group || !outgrows(group->held, group->members.size(), group->size())) continue;
      Term box = sum_of(t, *group);
      for (auto m = group->members.rbegin(); m != group->members.rend(); ++m) {
        t.terms.erase(t.terms.begin() + static_cast<std::ptrdiff_t>(*m));
      }
      t.terms.push_back(std::move(box));
      return true;
    }
  }
  return false;
}

}  // namespace

void combine(Tangent& t) {
  if (t.terms.size() < 2) return;
  int64_t held = 0;
  if (t.K == 1) {  // a value: its terms hold no more than it does, one by one
    for (const Term& term : t.terms)
      held += std::max(held_by(term), term.coef.defined() ? term.coef.numel() : 1);
    if (held < t.numel()) return;
    const bool spoiled =
        std::any_of(t.terms.begin(), t.terms.end(), [](const Term& term) { return term.spoiled; });
    c10::SmallVector<Term, 2> terms = std::move(from_value(value(t)).terms);
    t.terms = std::move(terms);
    for (Term& term : t.terms) term.spoiled = spoiled;
    return;
  }
  for (const Term& term : t.terms) held += held_by(term);
  // No box is smaller than one row.
  if (16 * held >= t.numel() && (held >= t.numel() || t.terms.size() >= many_terms) && combine_blocks(t)) {
    return combine(t);
  }
  const auto [first, last] = seed_range(t);
  if (!outgrows(held, t.terms.size(), (last - first) * t.numel())) return;
  for (Term& term : t.terms) look_for_nan(term);
  densify(t);
}

}  // namespace hesse
