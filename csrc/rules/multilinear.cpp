// Products of two and three tensors that are not matrix products: the cross product of vectors,
//
//     y = a x b     dy = a x db - b x da,  ga = b x gy,  gb = gy x a
//
// and y = sum a b c over named axes (`nn.Bilinear`), where each derivative is one einsum of a tangent with
// what the others and gy make of each other.
#include "factors.h"
#include "matrices.h"
#include "shapes.h"

#include <algorithm>

namespace hesse::rules {

namespace {

// ---- the cross product ----------------------------------------------------------------------------------

// Values as [outer, 3, inner].
Shape around(const Shape& shape, int64_t axis) {
  Shape s{1, 3, 1};
  for (int64_t a = 0; a < static_cast<int64_t>(shape.size()); ++a) {
    if (a != axis) s[a < axis ? 0 : 2] *= shape[a];
  }
  return s;
}

// v [outer, 3, inner] as the matrices that take u to v x u: [outer, inner, 3, 3].
Tensor crossing(const Tensor& v) {
  const Tensor n = at::arange(3, v.options().requires_grad(std::nullopt));
  const Tensor i = n.reshape({1, 3, 1}), a = n.reshape({3, 1, 1}), j = n.reshape({1, 1, 3});
  const Tensor sign = (i - a) * (a - j) * (j - i) * 0.5;  // of the permutation (i, a, j)
  return at::matmul(v.transpose(1, 2), sign.reshape({3, 9})).reshape({v.size(0), v.size(2), 3, 3});
}

void cross() {
  using N = gen::LinalgCrossBackward0;
  auto shape = [](Local& l) { return around(l.out_shape[0], wrap(node<N>(l).dim, l.out_shape[0])); };
  auto apply = [shape](Local& l, const Tangent& t, const Tensor& w, double sign) {
    const Tangent u = view(expand(cast(t, dtype_of(l)), l.out_shape[0]), shape(l));
    return view(scale(einsum(u, "ojq", w, "oqij", "oiq"), sign), l.out_shape[0]);
  };
  auto of = [shape](Local& l, const Tensor& t) {
    return t.defined() ? crossing(t.expand(l.out_shape[0]).reshape(shape(l))) : t;
  };
  Rule rule;
  rule.save = [of](Local& l) {
    l.saved = {l.active[1] ? of(l, l.unpack(node<N>(l).self_)) : Tensor(),
               l.active[0] ? of(l, l.unpack(node<N>(l).other_)) : Tensor()};
  };
  rule.push = [apply](Local& l, const Tangents& dx) -> Tangents {
    Dual dy;
    if (!dx[0].zero()) dy = dy + Dual({}, apply(l, dx[0], l.saved[1], -1.0));
    if (!dx[1].zero()) dy = dy + Dual({}, apply(l, dx[1], l.saved[0], 1.0));
    return {std::move(dy.t)};
  };
  rule.pull = [apply](Local& l, const Tangents& dgy) {
    Tangents dgx(2);
    if (l.wanted[0]) dgx[0] = apply(l, dgy[0], l.saved[1], 1.0);
    if (l.wanted[1]) dgx[1] = apply(l, dgy[0], l.saved[0], -1.0);
    return dgx;
  };
  rule.curve = [apply, of](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
    if (l.bent.empty()) l.bent = {of(l, gy[0])};
    Tangents dgx(2);
    if (l.wanted[0] && !dx[1].zero()) dgx[0] = apply(l, dx[1], l.bent[0], -1.0);
    if (l.wanted[1] && !dx[0].zero()) dgx[1] = apply(l, dx[0], l.bent[0], 1.0);
    return dgx;
  };
  add_rule("LinalgCrossBackward0", std::move(rule));
}

// ---- sums of products of three --------------------------------------------------------------------------

// Letters of the axes of the three inputs and of the result.
struct Names {
  std::string in[3], out;
};

Names names_of(const gen::TrilinearBackward0& n, const Local& l) {
  const std::vector<int64_t>* missing[] = {&n.expand1, &n.expand2, &n.expand3};
  size_t rank = 0;
  for (size_t i = 0; i < 3; ++i) {
    if (l.active[i]) rank = l.in_shape[i].size() + missing[i]->size();
  }
  auto has = [](const std::vector<int64_t>& axes, size_t a) {
    return std::find(axes.begin(), axes.end(), static_cast<int64_t>(a)) != axes.end();
  };
  Names names;
  for (size_t a = 0; a < rank; ++a) {
    const char c = static_cast<char>('a' + a);
    for (size_t i = 0; i < 3; ++i) {
      if (!has(*missing[i], a)) names.in[i] += c;
    }
    if (!has(n.sumdim, a)) names.out += c;
  }
  return names;
}

bool within(char c, const std::string& s) { return s.find(c) != std::string::npos; }

// The letters of a and b that are also in c or d.
std::string shared(const std::string& a, const std::string& b, const std::string& c, const std::string& d) {
  std::string s;
  for (char x : a + b) {
    if ((within(x, c) || within(x, d)) && !within(x, s)) s += x;
  }
  return s;
}

void trilinear() {
  using N = gen::TrilinearBackward0;
  Rule rule;
  rule.covers = [](Local& l) {
    const Names names = names_of(node<N>(l), l);
    const std::string all = names.in[0] + names.in[1] + names.in[2] + names.out;
    return std::all_of(all.begin(), all.end(), [&](char c) {
      return std::count(all.begin(), all.end(), c) > 1;  // no axis is one tensor's alone
    });
  };
  // saved: a, b, c, and for each what the other two make.
  rule.save = [](Local& l) {
    auto& n = node<N>(l);
    const Names names = names_of(n, l);
    l.saved = {l.unpack(n.i1_), l.unpack(n.i2_), l.unpack(n.i3_)};
    for (size_t i = 0; i < 3; ++i) {
      const size_t j = (i + 1) % 3, k = (i + 2) % 3;
      Tensor w;
      if (l.active[i]) {
        w = at::einsum(
            names.in[j] + "," + names.in[k] + "->" + shared(names.in[j], names.in[k], names.in[i], names.out),
            {l.saved[j], l.saved[k]});
      }
      l.saved.push_back(w);
    }
  };
  rule.push = [](Local& l, const Tangents& dx) -> Tangents {
    const Names names = names_of(node<N>(l), l);
    Dual dy;
    for (size_t i = 0; i < 3; ++i) {
      if (dx[i].zero()) continue;
      const std::string w = shared(names.in[(i + 1) % 3], names.in[(i + 2) % 3], names.in[i], names.out);
      dy = dy + Dual({}, einsum(dx[i], names.in[i], l.saved[3 + i], w, names.out));
    }
    return {std::move(dy.t)};
  };
  rule.pull = [](Local& l, const Tangents& dgy) {
    const Names names = names_of(node<N>(l), l);
    Tangents dgx(3);
    for (size_t i = 0; i < 3; ++i) {
      if (!l.wanted[i]) continue;
      const std::string w = shared(names.in[(i + 1) % 3], names.in[(i + 2) % 3], names.in[i], names.out);
      dgx[i] = einsum(dgy[0], names.out, l.saved[3 + i], w, names.in[i]);
    }
    return dgx;
  };
  // bent: at k, what gy and input k make.
  rule.curve = [](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
    const Names names = names_of(node<N>(l), l);
    Duals dgx(3);
    l.bent.resize(3);
    for (size_t i = 0; i < 3; ++i) {
      for (size_t j = 0; j < 3; ++j) {
        if (i == j || !l.wanted[i] || dx[j].zero()) continue;
        const size_t k = 3 - i - j;
        const std::string w = shared(names.out, names.in[k], names.in[i], names.in[j]);
        if (!l.bent[k].defined()) {
          l.bent[k] = at::einsum(names.out + "," + names.in[k] + "->" + w, {gy[0], l.saved[k]});
        }
        dgx[i] = dgx[i] + Dual({}, einsum(dx[j], names.in[j], l.bent[k], w, names.in[i]));
      }
    }
    return Tangents{std::move(dgx[0].t), std::move(dgx[1].t), std::move(dgx[2].t)};
  };
  rule.multiplies = true;
  add_rule("TrilinearBackward0", std::move(rule));
}

}  // namespace

void multilinear() {
  cross();
  trilinear();
}

}  // namespace hesse::rules
