// Recurrent layers and cells that a library computes in one call. With the gates a = W x + b and
// u = U h + b', and s the logistic function,
//
//     RNN    h' = relu or tanh(a + u)
//     LSTM   c' = s(f) c + s(i) tanh(g),  h' = s(o) tanh(c')  (projected: P h')       i, f, g, o of a + u
//     GRU    h' = n + s(z) (h - n),  n = tanh(n_a + s(r) n_u)                         r, z of a + u
//
// They are computed anew in parts: cuDNN and MIOpen cannot be differentiated twice.
#include "factors.h"
#include "reads.h"
#include "replay.h"
#include "shapes.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/functions/utils.h>

#include <functional>
#include <numeric>
#include <tuple>

namespace hesse::rules {

namespace {

// As the libraries number them.
enum class Cell : int64_t { relu = 0, tanh = 1, lstm = 2, gru = 3 };

struct State {
  Tensor h, c;  // c: of an LSTM
};

State lstm_cell(const Tensor& gates, const Tensor& c) {
  const auto parts = gates.chunk(4, 1);
  const Tensor next = parts[1].sigmoid() * c + parts[0].sigmoid() * parts[2].tanh();
  return {parts[3].sigmoid() * next.tanh(), next};
}

Tensor gru_cell(const Tensor& a, const Tensor& u, const Tensor& h) {
  const auto in = a.chunk(3, 1), hidden = u.chunk(3, 1);
  const Tensor n = (in[2] + (in[0] + hidden[0]).sigmoid() * hidden[2]).tanh();
  return n + (in[1] + hidden[1]).sigmoid() * (h - n);
}

// One direction of one layer: W, U, b, b', P; undefined where it has none.
struct Weights {
  Tensor w, u, b, b_hidden, project;
};

State step(Cell cell, const Weights& w, const Tensor& a, const State& s) {
  const Tensor u = at::linear(s.h, w.u, w.b_hidden);
  switch (cell) {
    case Cell::relu:
      return {(a + u).relu(), s.c};
    case Cell::tanh:
      return {(a + u).tanh(), s.c};
    case Cell::gru:
      return {gru_cell(a, u, s.h), s.c};
    case Cell::lstm:
      break;
  }
  State next = lstm_cell(a + u, s.c);
  if (w.project.defined()) next.h = at::linear(next.h, w.project);
  return next;
}

State rows(const State& s, int64_t begin, int64_t end) {
  return {s.h.slice(0, begin, end), s.c.defined() ? s.c.slice(0, begin, end) : Tensor()};
}

State below(const State& a, const State& b) {
  return {at::cat({a.h, b.h}), a.c.defined() ? at::cat({a.c, b.c}) : Tensor()};
}

// x: [steps, batch, features]; or packed, [sum(sizes), features], the rows of all steps, of which each has as
// many as sequences are that long: longest first, so that sizes decrease. Returns the h of all steps, and the
// last state of each sequence.
std::pair<Tensor, State> run(Cell cell, const Weights& w, const Tensor& x, State s, const Shape& sizes,
                             bool reverse) {
  const bool packed = x.dim() == 2;
  const Tensor gates = at::linear(x, w.w, w.b);
  const std::vector<Tensor> a = packed ? gates.split_with_sizes(sizes, 0) : gates.unbind(0);
  const auto steps = static_cast<int64_t>(sizes.size());
  std::vector<Tensor> h(sizes.size());
  std::vector<State> ended;
  const State first = s;
  if (reverse && steps > 0) s = rows(first, 0, sizes.back());
  for (int64_t i = 0; i < steps; ++i) {
    const int64_t t = reverse ? steps - 1 - i : i, before = s.h.size(0);
    if (sizes[t] > before) s = below(s, rows(first, before, sizes[t]));
    if (sizes[t] < before) {
      ended.push_back(rows(s, sizes[t], before));
      s = rows(s, 0, sizes[t]);
    }
    s = step(cell, w, a[t], s);
    h[t] = s.h;
  }
  for (; !ended.empty(); ended.pop_back()) s = below(s, ended.back());
  return {packed ? at::cat(h) : at::stack(h), s};
}

struct Network {
  Cell cell;
  bool bidirectional = false, batch_first = false;
  Shape batch_sizes = {};  // of a packed input [sum(batch_sizes), features]; else it is [steps, batch, ..]
};

// hx, cx: [layers * directions, batch, features], layers outside. Returns y, hy, cy.
std::vector<Tensor> run(const Network& net, Tensor x, const std::vector<Weights>& weights, const Tensor& hx,
                        const Tensor& cx) {
  Shape sizes = net.batch_sizes;
  const bool packed = !sizes.empty();
  if (!packed) {
    if (net.batch_first) x = x.transpose(0, 1);
    sizes.assign(x.size(0), x.size(1));
  }
  const size_t directions = net.bidirectional ? 2 : 1;
  std::vector<Tensor> hy, cy;
  for (size_t i = 0; i < weights.size(); i += directions) {
    std::vector<Tensor> both;
    for (size_t d = 0; d < directions; ++d) {
      const auto at = static_cast<int64_t>(i + d);
      const State s{hx.select(0, at), cx.defined() ? cx.select(0, at) : Tensor()};
      auto [y, last] = run(net.cell, weights[i + d], x, s, sizes, d == 1);
      both.push_back(y);
      hy.push_back(last.h);
      cy.push_back(last.c);
    }
    x = both.size() > 1 ? at::cat(both, -1) : both[0];
  }
  if (!packed && net.batch_first) x = x.transpose(0, 1);
  return {x, at::stack(hy), net.cell == Cell::lstm ? at::stack(cy) : Tensor()};
}

// ---- cuDNN and MIOpen: inputs x, weights, hx, cx ------------------------------------------------------

template <class N>
void layers(const char* name) {
  Rule rule = replayed(
      [](Local& l) {
        auto& n = node<N>(l);
        TORCH_CHECK(!n.weight_released_, torch::autograd::ERR_BACKWARD_TWICE);
        std::vector<Tensor> x{l.unpack(n.input_)};
        for (const auto& w : n.weight_) x.push_back(l.unpack(w));
        x.push_back(l.unpack(n.hx_));
        x.push_back(l.unpack(n.cx_));
        return x;
      },
      [](Local& l, const std::vector<Tensor>& x) {
        auto& n = node<N>(l);
        Network net{static_cast<Cell>(n.mode), n.bidirectional, n.batch_first};
        for (const auto& size : n.batch_sizes) net.batch_sizes.push_back(c10::SymInt(size).expect_int());
        // Two or four of each direction and layer, and one more where h is projected.
        const auto each = (x.size() - 3) / static_cast<size_t>(n.num_layers * (n.bidirectional ? 2 : 1));
        std::vector<Weights> weights;
        for (size_t i = 1; i + each <= x.size() - 2; i += each) {
          Weights w{x[i], x[i + 1], {}, {}, {}};
          if (each >= 4) std::tie(w.b, w.b_hidden) = std::tie(x[i + 2], x[i + 3]);
          if (each % 2 == 1) w.project = x[i + each - 1];
          weights.push_back(w);
        }
        return run(net, x[0], weights, x[x.size() - 2], x[x.size() - 1]);
      });
  // What was dropped between layers, the library alone can tell from its seed.
  rule.covers = [](Local& l) {
    auto& n = node<N>(l);
    return n.dropout == 0.0 || !n.train || n.num_layers == 1;
  };
  add_rule(name, std::move(rule));
}

// ---- oneDNN: a layer and direction of an LSTM at a time ------------------------------------------------

void onednn() {
  using N = gen::MkldnnRnnLayerBackward0;
  add_rule("MkldnnRnnLayerBackward0",
           replayed(
               [](Local& l) {
                 auto& n = node<N>(l);
                 std::vector<Tensor> x;
                 for (auto* saved :
                      {&n.input_, &n.weight0_, &n.weight1_, &n.weight2_, &n.weight3_, &n.hx__, &n.cx__}) {
                   x.push_back(l.unpack(*saved));
                 }
                 return x;
               },
               [](Local& l, const std::vector<Tensor>& x) -> std::vector<Tensor> {
                 auto& n = node<N>(l);
                 Weights w{x[1], x[2], {}, {}, {}};
                 if (n.has_biases) std::tie(w.b, w.b_hidden) = std::tie(x[3], x[4]);
                 auto state = [&](const Tensor& t) { return t.reshape({x[0].size(1), n.hidden_size}); };
                 const Shape sizes(x[0].size(0), x[0].size(1));
                 auto [y, last] =
                     run(static_cast<Cell>(n.mode), w, x[0], {state(x[5]), state(x[6])}, sizes, n.reverse);
                 return {y, last.h.reshape(x[5].sizes()), last.c.reshape(x[6].sizes())};
               }));
}

// ---- cells on a GPU, given their gates ------------------------------------------------------------------

// Gates with their bias.
Tensor biased(const Tensor& gates, const Tensor& b) { return b.defined() ? gates + b : gates; }

template <class N, class State, class Forward>
void cell(const char* name, size_t results, State state, Forward forward) {
  Rule rule = replayed(
      [state](Local& l) {
        auto& n = node<N>(l);
        return std::vector<Tensor>{l.unpack(n.input_gates_), l.unpack(n.hidden_gates_), l.unpack(state(n)),
                                   l.unpack(n.input_bias_), l.unpack(n.hidden_bias_)};
      },
      [forward](Local&, const std::vector<Tensor>& x) {
        return forward(biased(x[0], x[3]), biased(x[1], x[4]), x[2]);
      });
  // The workspace is no result.
  rule.covers = [results](Local& l) { return l.used.size() <= results || !l.used[results]; };
  add_rule(name, std::move(rule));
}

// ---- packing: the rows of a padded input that are not padding, step by step -----------------------------

// A step: its first sequences, of which each is a row. Step by step the sequences stay apart, as they do in
// what reads them.
struct Block {
  Geometry padded, packed;
};

std::vector<Block> blocks_of(Local& l) {
  auto& n = node<gen::PackPaddedSequenceBackward0>(l);
  const Shape in = ints(n.input_sym_sizes), stride = row_major(in);
  const Tensor sizes = l.unpack(n.result1_);  // always on the CPU
  const int64_t step = stride[n.batch_first ? 1 : 0], sequence = stride[n.batch_first ? 0 : 1];
  const int64_t row = std::accumulate(in.begin() + 2, in.end(), int64_t{1}, std::multiplies<>());
  const auto* size = read(sizes).const_data_ptr<int64_t>();
  std::vector<Block> blocks;
  for (int64_t t = 0, at = 0; t < sizes.numel(); at += size[t++] * row) {
    const Shape shape{size[t], row};
    blocks.push_back({{shape, {sequence, 1}, t * step}, {shape, {row, 1}, at}});
  }
  return blocks;
}

void packing() {
  Rule rule;
  rule.push = [](Local& l, const Tangents& dx) -> Tangents {
    Tangent dy = zero_like(dx[0], l.out_shape[0]);
    for (const Block& b : blocks_of(l)) accumulate(dy, put(take(dx[0], b.padded), b.packed, l.out_shape[0]));
    return {std::move(dy)};
  };
  rule.pull = [](Local& l, const Tangents& dgy) -> Tangents {
    Tangent dgx = zero_like(dgy[0], l.in_shape[0]);
    for (const Block& b : blocks_of(l)) accumulate(dgx, put(take(dgy[0], b.packed), b.padded, l.in_shape[0]));
    return {std::move(dgx)};
  };
  add_rule("PackPaddedSequenceBackward0", std::move(rule));
}

}  // namespace

void recurrent() {
  packing();
  layers<gen::CudnnRnnBackward0>("CudnnRnnBackward0");
  layers<gen::MiopenRnnBackward0>("MiopenRnnBackward0");
  onednn();
  using Tensors = std::vector<Tensor>;
  cell<gen::ThnnFusedLstmCellBackward0>(
      "ThnnFusedLstmCellBackward0", 2, [](auto& n) -> auto& { return n.cx_; },
      [](const Tensor& a, const Tensor& u, const Tensor& c) -> Tensors {
        State s = lstm_cell(a + u, c);
        return {s.h, s.c};
      });
  cell<gen::ThnnFusedGruCellBackward0>(
      "ThnnFusedGruCellBackward0", 1, [](auto& n) -> auto& { return n.hx_; },
      [](const Tensor& a, const Tensor& u, const Tensor& h) -> Tensors { return {gru_cell(a, u, h)}; });
}

}  // namespace hesse::rules
