// Complex values between real inputs and a real output. A complex number is a pair of reals here, and a
// cotangent is PyTorch's: dL/d(re) + i dL/d(im). For a holomorphic y = f(x) that means
//
//     push  dy = f' dx        pull  dgx = conj(f') dgy        curve  dgx = gy conj(f'' dx)
//
// which is what the elementwise class and the products do; `holds_for_complex` lists those whose formulas are
// holomorphic, or real and linear. The others have rules of their own.
#include "reduction.h"

namespace hesse::rules {

namespace {

Tensor imaginary_unit(const Local& l) {
  const bool from = c10::isComplexType(dtype_of(l));
  const at::ScalarType dtype = from ? dtype_of(l) : c10::toComplexType(dtype_of(l));
  return at::scalar_tensor(c10::complex<double>(0, 1),
                           l.out_options[0].requires_grad(std::nullopt).dtype(dtype));
}

Tangent times_i(Local& l, Tangent t) {
  if (l.memo.empty()) l.memo = {imaginary_unit(l)};
  return scale(std::move(t), l.memo[0]);
}

// Real and imaginary parts as the two elements of a last axis.
Geometry part(const Shape& shape, int64_t which) {
  Shape pairs = shape;
  pairs.push_back(2);
  Geometry g{shape, row_major(pairs), which};
  g.stride.pop_back();
  return g;
}

Tangent to_pairs(Local& l, const Tangent& t) {
  Shape pairs = t.shape;
  pairs.push_back(2);
  Tangent out = put(real(t), part(t.shape, 0), pairs);
  accumulate(out, put(real(scale(times_i(l, t), -1.0)), part(t.shape, 1), pairs));
  return out;
}

Tangent from_pairs(Local& l, const Tangent& t) {
  Shape shape = t.shape;
  shape.pop_back();
  const Tangent imaginary = times_i(l, take(t, part(shape, 1)));
  Tangent out = cast(take(t, part(shape, 0)), imaginary.options.dtype().toScalarType());
  accumulate(out, imaginary);
  return out;
}

void pairs(const char* name, bool to_real) {
  Rule rule;
  rule.push = [to_real](Local& l, const Tangents& dx) -> Tangents {
    return {to_real ? to_pairs(l, dx[0]) : from_pairs(l, dx[0])};
  };
  rule.pull = [to_real](Local& l, const Tangents& dgy) -> Tangents {
    return {to_real ? from_pairs(l, dgy[0]) : to_pairs(l, dgy[0])};
  };
  add_complex_rule(name, std::move(rule));
}

void conjugate(const char* name) {
  Rule rule;
  rule.push = [](Local&, const Tangents& dx) -> Tangents { return {conj(dx[0])}; };
  rule.pull = [](Local&, const Tangents& dgy) -> Tangents { return {conj(dgy[0])}; };
  add_complex_rule(name, std::move(rule));
}

// A real function of one complex value, with gradient u = l.saved[1] at x = l.saved[0]:
// dy = Re(conj(u) dx), dgx = u dgy.
template <class N, class Slope, class Curve>
void real_valued(const char* name, Slope slope, Curve curve) {
  Rule rule;
  rule.save = [slope](Local& l) {
    const Tensor x = l.unpack(node<N>(l).self_);
    l.saved = {x, slope(x, l)};
  };
  rule.push = [](Local& l, const Tangents& dx) -> Tangents {
    return {real(scale(dx[0], conjugated(l.saved[1])))};
  };
  rule.pull = [](Local& l, const Tangents& dgy) -> Tangents { return {scale(dgy[0], l.saved[1])}; };
  rule.curve = [curve](Local& l, const std::vector<Tensor>& gy, const Tangents& dx) -> Tangents {
    return {curve(l, gy[0], dx[0])};
  };
  add_complex_rule(name, std::move(rule));
}

Tensor where_nonzero(const Tensor& x, const Tensor& value) { return value.masked_fill(x == 0, 0); }

// Scalars of an op that has complex operands may be complex too; the rules of reals read them as numbers.
bool is_real(const at::Scalar& s) { return !s.isComplex(); }
template <class N>
bool real_scalars(Local& l) {
  const N& n = node<N>(l);
  bool real = true;
  if constexpr (requires { n.alpha; }) real = real && is_real(n.alpha);
  if constexpr (requires { n.beta; }) real = real && is_real(n.beta);
  if constexpr (requires { n.exponent; }) real = real && is_real(n.exponent);
  return real;
}

}  // namespace

void complex_values() {
  // ---- linear, or holomorphic: the rule of real values holds as it is ---------------------------------
  for (const char* name : {"CatBackward0",  "ExpandBackward0", "StackBackward0", "ConstantPadNdBackward0",
                           "SumBackward0",  "SumBackward1",    "MeanBackward0",  "MeanBackward1",
                           "NegBackward0",  "MulBackward0",    "DivBackward0",   "ReciprocalBackward0",
                           "ExpBackward0",  "LogBackward0",    "SinBackward0",   "CosBackward0",
                           "SinhBackward0", "CoshBackward0",   "TanhBackward0",  "SigmoidBackward0",
                           "SqrtBackward0", "RsqrtBackward0",  "MmBackward0",    "BmmBackward0",
                           "MvBackward0",   "DotBackward0"}) {
    holds_for_complex(name);
  }
  holds_for_complex("AddBackward0", real_scalars<gen::AddBackward0>);
  holds_for_complex("SubBackward0", real_scalars<gen::SubBackward0>);
  holds_for_complex("PowBackward0", real_scalars<gen::PowBackward0>);
  holds_for_complex("AddmmBackward0", real_scalars<gen::AddmmBackward0>);
  holds_for_complex("BaddbmmBackward0", real_scalars<gen::BaddbmmBackward0>);

  // ---- conjugates, parts ------------------------------------------------------------------------------
  conjugate("ConjBackward0");
  conjugate("ConjPhysicalBackward0");
  pairs("ViewAsRealBackward0", true);
  pairs("ViewAsComplexBackward0", false);

  // ---- of two reals -----------------------------------------------------------------------------------
  elementwise_linear<gen::ComplexBackward0>("ComplexBackward0", [](auto&, Local& l) {
    l.first[0] = 1.0;
    l.first[1] = imaginary_unit(l);
  });
  holds_for_complex("ComplexBackward0");
  // y = r exp(i t)
  elementwise<gen::PolarBackward0>(
      "PolarBackward0",
      [](auto& n, Local& l) {
        const Tensor y = l.unpack(n.result_);
        l.first[0] = y.sgn();
        l.first[1] = y * imaginary_unit(l);
        l.saved = {y};
      },
      [](auto&, Local& l) {
        l.second[1] = l.second[2] = l.first[0].c * imaginary_unit(l);
        l.second[3] = times(-1, l.saved[0]);
      });
  holds_for_complex("PolarBackward0");

  // ---- real functions: 0 at x = 0 ---------------------------------------------------------------------
  // |x|: u = s = x / |x|, dgx = gy (dx - s Re(conj(s) dx)) / |x|
  real_valued<gen::AbsBackward0>(
      "AbsBackward0", [](const Tensor& x, const Local&) { return x.sgn(); },
      [](Local& l, const Tensor& gy, const Tangent& dx) {
        const Tensor &x = l.saved[0], &s = l.saved[1];
        if (l.bent.empty()) l.bent = {gy * where_nonzero(x, x.abs().reciprocal())};
        return scale(minus(dx, scale(real(scale(dx, conjugated(s))), s)), l.bent[0]);
      });
  // the angle: u = i / conj(x), dgx = gy conj(i dx / x^2)
  real_valued<gen::AngleBackward0>(
      "AngleBackward0",
      [](const Tensor& x, const Local& l) { return where_nonzero(x, imaginary_unit(l) / conjugated(x)); },
      [](Local& l, const Tensor& gy, const Tangent& dx) {
        const Tensor& u = l.saved[1];
        if (l.bent.empty()) l.bent = {gy * u * u * imaginary_unit(l)};
        return scale(conj(dx), l.bent[0]);
      });
}

}  // namespace hesse::rules
