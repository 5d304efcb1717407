// Scaled dot product attention, whichever kernel computed it:
//
//     y = softmax(scale q k' + bias) v
//
// over the axes [batch, heads, length, features]. A group of query heads may share a head of k and v. PyTorch
// differentiates none of the fused kernels twice, so the op is computed anew in parts, from the q, k, v and
// bias that all of them save. Their logsumexp is no function of the input to autograd and is not needed.
#include "replay.h"

#include <ATen/ATen.h>

#include <cmath>
#include <limits>
#include <optional>

namespace hesse::rules {

namespace {

// 0 where query i sees key j, else -inf.
Tensor barrier(const Tensor& sees, at::ScalarType dtype) {
  constexpr double inf = std::numeric_limits<double>::infinity();
  return at::zeros(sees.sizes(), sees.options().dtype(dtype)).masked_fill(sees.logical_not(), -inf);
}

// bias: [batch, heads, length, length] or broadcast to that; boolean: what takes part. Undefined: none.
Tensor attend(Tensor q, Tensor k, Tensor v, const Tensor& bias, bool causal,
              std::optional<double> given_scale) {
  const at::ScalarType dtype = q.scalar_type();
  if (at::isReducedFloatingType(dtype)) {  // the kernels add up in float32 too
    for (Tensor* t : {&q, &k, &v}) *t = t->to(at::kFloat);
  }
  const int64_t batch = q.size(0), heads = q.size(1), n = q.size(2), m = k.size(2);
  const int64_t pairs = batch * k.size(1), shared = k.size(1) > 0 ? heads / k.size(1) : 1;
  const double scale = given_scale.value_or(1.0 / std::sqrt(static_cast<double>(q.size(3))));
  // The queries of a group meet the same keys: they lie one after the other in a single product.
  auto queries = [&](const Tensor& t) { return t.reshape({pairs, shared * n, t.size(3)}); };
  auto keys = [&](const Tensor& t) { return t.reshape({pairs, m, t.size(3)}); };
  Tensor s = (queries(q) * scale).bmm(keys(k).transpose(1, 2)).view({batch, heads, n, m});
  if (bias.defined()) s = s + (bias.scalar_type() == at::kBool ? barrier(bias, s.scalar_type()) : bias);
  if (causal) s = s + barrier(at::ones({n, m}, s.options().dtype(at::kBool)).tril(), s.scalar_type());
  // A query that sees no key gets zeros.
  const Tensor p = at::_safe_softmax(s, -1);
  return queries(p).bmm(keys(v)).view({batch, heads, n, v.size(3)}).to(dtype);
}

template <class N>
Tensor bias_of(N& n, Local& l) {
  if constexpr (requires { n.attn_mask_; }) return l.unpack(n.attn_mask_);
  if constexpr (requires { n.attn_bias_; }) return l.unpack(n.attn_bias_);
  return {};
}

template <class N>
bool covers(Local& l) {
  auto& n = node<N>(l);
  // What was dropped, the kernel alone can tell from its seed.
  if (n.dropout_p > 0.0) return false;
  // Of unequal lengths, some kernels let the last query see all keys, others let the first see the first.
  if constexpr (requires { n.max_q; }) return !n.is_causal || n.max_q == n.max_k;
  return true;
}

template <class N>
void attention_of(const char* name) {
  Rule rule = replayed(
      [](Local& l) {
        auto& n = node<N>(l);
        std::vector<Tensor> x{l.unpack(n.query_), l.unpack(n.key_), l.unpack(n.value_)};
        if (l.inputs() > 3) x.push_back(bias_of(n, l));  // one that can be differentiated
        return x;
      },
      [](Local& l, const std::vector<Tensor>& x) -> std::vector<Tensor> {
        auto& n = node<N>(l);
        return {attend(x[0], x[1], x[2], x.size() > 3 ? x[3] : bias_of(n, l), n.is_causal, n.scale)};
      });
  rule.covers = covers<N>;
  add_rule(name, std::move(rule));
}

}  // namespace

// Not here are the kernels' plainer forms (_flash_attention_forward and its kin): they do not save all that
// they were given (lengths, slopes), so that their nodes cannot tell what was computed.
void attention() {
  attention_of<gen::ScaledDotProductFlashAttentionForCpuBackward0>(
      "ScaledDotProductFlashAttentionForCpuBackward0");
  attention_of<gen::ScaledDotProductFlashAttentionBackward0>("ScaledDotProductFlashAttentionBackward0");
  attention_of<gen::ScaledDotProductEfficientAttentionBackward0>(
      "ScaledDotProductEfficientAttentionBackward0");
  attention_of<gen::ScaledDotProductCudnnAttentionBackward0>("ScaledDotProductCudnnAttentionBackward0");
  attention_of<gen::ScaledDotProductFusedAttentionOverrideableBackward0>(
      "ScaledDotProductFusedAttentionOverrideableBackward0");
}

}  // namespace hesse::rules
