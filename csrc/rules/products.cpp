// Bilinear ops: matrix products in all their forms. A row names the axes of both operands and of the product,
//
//     y[out] = alpha * sum a[a_axes] b[b_axes]  (+ beta * c, broadcast)
//
// and each of push, pull and curve is an einsum of one tangent with one known tensor.
#include "factors.h"

namespace hesse::rules {

namespace {

struct Bilinear {
  std::string a, b, out;
  size_t ia = 0, ib = 1;  // which inputs the operands are
  double alpha = 1.0;
  int ic = -1;  // the input that is added, if any
  double beta = 1.0;
};

// axes(node, local) -> Bilinear; operands(node, local) -> {a, b}, undefined where autograd did not save it.
template <class N, class A, class O>
void bilinear(const char* name, A axes, O operands) {
  Rule rule;
  rule.save = [operands](Local& l) { l.saved = operands(node<N>(l), l); };
  rule.push = [axes](Local& l, const Tangents& dx) -> Tangents {
    const Bilinear p = axes(node<N>(l), l);
    Tangent dy;
    auto add = [&](Tangent t, double factor) {
      if (factor != 1.0) t = scale(std::move(t), factor);
      if (dy.K == 0) dy = zero_like(t, l.out_shape[0]);
      accumulate(dy, std::move(t));
    };
    if (!dx[p.ia].zero()) add(einsum(dx[p.ia], p.a, l.saved[1], p.b, p.out), p.alpha);
    if (!dx[p.ib].zero()) add(einsum(dx[p.ib], p.b, l.saved[0], p.a, p.out), p.alpha);
    if (p.ic >= 0 && !dx[p.ic].zero()) add(expand(dx[p.ic], l.out_shape[0]), p.beta);
    return {std::move(dy)};
  };
  rule.pull = [axes](Local& l, const Tangents& dgy) {
    const Bilinear p = axes(node<N>(l), l);
    Tangents dgx(l.inputs());
    if (l.wanted[p.ia]) dgx[p.ia] = scale(einsum(dgy[0], p.out, conjugated(l.saved[1]), p.b, p.a), p.alpha);
    if (l.wanted[p.ib]) dgx[p.ib] = scale(einsum(dgy[0], p.out, conjugated(l.saved[0]), p.a, p.b), p.alpha);
    if (p.ic >= 0 && l.wanted[p.ic]) dgx[p.ic] = scale(sum_to(dgy[0], l.in_shape[p.ic]), p.beta);
    return dgx;
  };
  rule.curve = [axes](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) {
    const Bilinear p = axes(node<N>(l), l);
    Tangents dgx(l.inputs());
    if (l.wanted[p.ia] && !dx[p.ib].zero())
      dgx[p.ia] = scale(einsum(conj(dx[p.ib]), p.b, gy[0], p.out, p.a), p.alpha);
    if (l.wanted[p.ib] && !dx[p.ia].zero())
      dgx[p.ib] = scale(einsum(conj(dx[p.ia]), p.a, gy[0], p.out, p.b), p.alpha);
    return dgx;
  };
  rule.multiplies = true;
  add_rule(name, std::move(rule));
}

// The same for fixed axes, no addend.
template <class N, class O>
void product(const char* name, const Bilinear& axes, O operands) {
  bilinear<N>(name, [axes](auto&, Local&) { return axes; }, operands);
}

// beta * c + alpha * a b.
template <class N, class O>
void added_product(const char* name, const Bilinear& axes, O operands) {
  bilinear<N>(
      name,
      [axes](auto& n, Local&) {
        Bilinear p = axes;
        p.ia = 1;
        p.ib = 2;
        p.ic = 0;
        p.alpha = n.alpha.toDouble();
        p.beta = n.beta.toDouble();
        return p;
      },
      operands);
}

using Pair = std::vector<Tensor>;

}  // namespace

void products() {
  // ---- a b ---------------------------------------------------------------------------------------------
  product<gen::MmBackward0>("MmBackward0", {"mp", "pq", "mq"},
                            [](auto& n, Local& l) { return Pair{l.unpack(n.self_), l.unpack(n.mat2_)}; });
  product<gen::BmmBackward0>("BmmBackward0", {"bmp", "bpq", "bmq"},
                             [](auto& n, Local& l) { return Pair{l.unpack(n.self_), l.unpack(n.mat2_)}; });
  product<gen::MvBackward0>("MvBackward0", {"mp", "p", "m"},
                            [](auto& n, Local& l) { return Pair{l.unpack(n.self_), l.unpack(n.vec_)}; });
  product<gen::DotBackward0>("DotBackward0", {"p", "p", ""},
                             [](auto& n, Local& l) { return Pair{l.unpack(n.self_), l.unpack(n.tensor_)}; });
  product<gen::VdotBackward0>("VdotBackward0", {"p", "p", ""},
                              [](auto& n, Local& l) { return Pair{l.unpack(n.self_), l.unpack(n.other_)}; });

  // ---- beta c + alpha a b ------------------------------------------------------------------------------
  added_product<gen::AddmmBackward0>("AddmmBackward0", {"mp", "pq", "mq"}, [](auto& n, Local& l) {
    return Pair{l.unpack(n.mat1_), l.unpack(n.mat2_)};
  });
  added_product<gen::AddmvBackward0>("AddmvBackward0", {"mp", "p", "m"}, [](auto& n, Local& l) {
    return Pair{l.unpack(n.mat_), l.unpack(n.vec_)};
  });
  added_product<gen::AddrBackward0>("AddrBackward0", {"m", "q", "mq"}, [](auto& n, Local& l) {
    return Pair{l.unpack(n.vec1_), l.unpack(n.vec2_)};
  });
  added_product<gen::BaddbmmBackward0>("BaddbmmBackward0", {"bmp", "bpq", "bmq"}, [](auto& n, Local& l) {
    return Pair{l.unpack(n.batch1_), l.unpack(n.batch2_)};
  });
  added_product<gen::AddbmmBackward0>("AddbmmBackward0", {"bmp", "bpq", "mq"}, [](auto& n, Local& l) {
    return Pair{l.unpack(n.batch1_), l.unpack(n.batch2_)};
  });
}

}  // namespace hesse::rules
