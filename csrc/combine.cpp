// A tie of n cuts seeds and values into n blocks each: position k is (outer n + i) stride + inner, where i
// counts along the tie, and v likewise. A term that has the tie, and whose other dimensions cross no block,
// is zero but where both have the same i. Terms of one tie add up to one dense box of n pairs of blocks,
// which is n times smaller than that of everything.
#include "combine.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <limits>
#include <optional>
#include <vector>

namespace hesse {

namespace {

constexpr size_t many_terms = 24;

int64_t held_by(const Term& term) { return term.core.defined() ? term.core.numel() : 1; }

// Terms that hold so much, and are so many, are better off in a box of this size.
bool outgrows(int64_t held, size_t terms, int64_t box) {
  return terms > 1 && (held >= box || (terms >= many_terms && 16 * held >= box));
}

// A term of a tangent that has a tie: in its dimension `dim`, which goes on within a block if inner > 1.
struct Member {
  size_t term;
  int64_t dim, inner;
};

// Seeds or values, as a tie cuts them; and the part of them that terms reach.
struct Side {
  int64_t n, stride;
  int64_t inner = std::numeric_limits<int64_t>::max(), inner_end = 0;
  int64_t outer = std::numeric_limits<int64_t>::max(), outer_end = 0;

  int64_t period() const { return n * stride; }
  int64_t inners() const { return inner_end - inner; }
  int64_t size() const { return (outer_end - outer) * inners(); }  // of a block
  // Widens to what a term reaches beside its tie; false if it crosses blocks.
  template <class Step>
  bool reach(const Term& term, const Member& m, int64_t start, Step step) {
    if (start < 0 || start / stride % n != 0) return false;
    int64_t last_inner = start % stride, last_outer = start / period();
    for (int64_t d = 0; d < term.rank(); ++d) {
      const int64_t s = step(term.dims[d]), last = (d == m.dim ? m.inner : term.dims[d].n) - 1;
      if (s < 0) return false;
      (s % period() == 0 ? last_outer : last_inner) += last * (s % period() == 0 ? s / period() : s);
    }
    if (last_inner >= stride) return false;
    inner = std::min(inner, start % stride);
    outer = std::min(outer, start / period());
    inner_end = std::max(inner_end, last_inner + 1);
    outer_end = std::max(outer_end, last_outer + 1);
    return true;
  }
  int64_t end() const { return (outer_end - 1) * period() + (n - 1) * stride + inner_end; }
  // Where a start or a step leads within a block.
  int64_t start(int64_t at) const { return (at / period() - outer) * inners() + at % stride - inner; }
  int64_t step(int64_t s) const { return s % period() == 0 ? s / period() * inners() : s; }
};

int64_t seeds(const Dim& d) { return d.ks; }
int64_t values(const Dim& d) { return d.vs; }

std::optional<Member> find(const Tangent& t, size_t i, const Dim& tie) {
  const Term& term = t.terms[i];
  for (int64_t d = 0; d < term.rank(); ++d) {
    const Dim& own = term.dims[d];
    if (own.ks <= 0 || own.vs <= 0 || tie.ks % own.ks != 0 || tie.vs % own.vs != 0) continue;
    const int64_t inner = tie.ks / own.ks;
    if (tie.vs / own.vs == inner && own.n == tie.n * inner) return Member{i, d, inner};
  }
  return std::nullopt;
}

// The terms of a tie, and the box that they would be.
struct Group {
  Dim tie;
  int64_t first;  // seed
  Side k, v;
  std::vector<Member> members;
  int64_t held = 0;

  int64_t box() const { return tie.n * k.size() * v.size(); }
};

// The leader is a term with the tie. Seeds are counted from its first, and no other term may reach beyond its
// last: they are of one input.
std::optional<Group> group_of(const Tangent& t, const Dim& tie, const Term& leader) {
  const int64_t numel = t.numel();
  const auto [first, last] = leader.seed_range();
  Group g{tie, first, {tie.n, tie.ks}, {tie.n, tie.vs}, {}};
  if (numel % g.v.period() != 0) return std::nullopt;
  for (size_t i = 0; i < t.terms.size(); ++i) {
    const Term& term = t.terms[i];
    const auto m = find(t, i, tie);
    Side k = g.k, v = g.v;
    if (!m || !k.reach(term, *m, term.k0 - first, seeds) || !v.reach(term, *m, term.v0, values)) continue;
    if (k.end() > last - first) continue;
    g.k = k;
    g.v = v;
    g.held += held_by(term);
    g.members.push_back(*m);
  }
  if (g.members.size() < 2) return std::nullopt;
  // Of the values all, so that the box lies along their axes.
  g.v.inner = g.v.outer = 0;
  g.v.inner_end = tie.vs;
  g.v.outer_end = numel / g.v.period();
  return g;
}

// Rows are counted along the tie first: [n, outer, inner] of the seeds, [outer, inner] of the values.
Term sum_of(Tangent& t, const Group& g) {
  Tangent rows;
  rows.K = g.tie.n * g.k.size();
  rows.shape = {g.v.size()};
  rows.options = t.options;
  for (const Member& m : g.members) {
    Term term = std::move(t.terms[m.term]);
    if (m.inner > 1) split_dim(term, m.dim, m.inner);
    for (int64_t d = 0; d < term.rank(); ++d) {
      Dim& dim = term.dims[d];
      dim = d == m.dim ? Dim{dim.n, g.k.size(), 0} : Dim{dim.n, g.k.step(dim.ks), g.v.step(dim.vs)};
    }
    term.k0 = g.k.start(term.k0 - g.first);
    term.v0 = g.v.start(term.v0);
    rows.terms.push_back(std::move(term));
  }
  densify(rows);
  const Side &k = g.k, &v = g.v;
  Term box;
  box.dims = {g.tie,
              {k.outer_end - k.outer, k.period(), 0},
              {k.inners(), 1, 0},
              {v.outer_end, 0, v.period()},
              {v.inner_end, 0, 1}};
  box.k0 = g.first + k.outer * k.period() + k.inner;
  box.core = dense(rows).reshape(sizes_of(box));
  box.owned = true;
  squeeze(box);
  return box;
}

// Sums the terms of one tie where that pays.
bool combine_blocks(Tangent& t) {
  std::vector<std::pair<Dim, std::pair<int64_t, int64_t>>> seen;
  for (const Term& term : t.terms) {
    for (const Dim& tie : term.dims) {
      if (tie.ks <= 0 || tie.vs <= 0) continue;
      const std::pair candidate{tie, term.seed_range()};
      if (std::find(seen.begin(), seen.end(), candidate) != seen.end()) continue;
      seen.push_back(candidate);
      const auto group = group_of(t, tie, term);
      if (!group || !outgrows(group->held, group->members.size(), group->box())) continue;
      Term box = sum_of(t, *group);
      for (auto m = group->members.rbegin(); m != group->members.rend(); ++m) {
        t.terms.erase(t.terms.begin() + static_cast<std::ptrdiff_t>(m->term));
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
  for (const Term& term : t.terms) held += held_by(term);
  // No box is smaller than one row.
  if (16 * held >= t.numel() && (held >= t.numel() || t.terms.size() >= many_terms) && combine_blocks(t)) {
    return combine(t);
  }
  const auto [first, last] = seed_range(t);
  if (outgrows(held, t.terms.size(), (last - first) * t.numel())) densify(t);
}

}  // namespace hesse
