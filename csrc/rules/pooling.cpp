// Pooling is linear in the image once the saved indices are known, and acts on the last axes alone. Averages
// over tiles that do not overlap are sums of a view; all else is a map along those axes:
//
//     average   y[.., i, j] = sum of the window / its count
//     maximum   y[.., p] = x[.., index[.., p]],   both with their axes of space flattened
//     unpool    y[.., index[.., p]] = x[.., p],   the transpose of that
//
// The backward of a pooling is its transpose, and a node of its own where a gradient was differentiated.
#include "picks.h"
#include "shapes.h"
#include "spatial.h"

namespace hesse::rules {

namespace {

// ---- averages -----------------------------------------------------------------------------------------

// Pool, Back: the ops. The windows are given by the node, or by the sizes alone (adaptive).
template <class Pool, class Back, size_t rank>
struct Average {
  template <class N>
  static std::optional<Tiles> windows(N& n, const Shape& large, const Shape& small) {
    if constexpr (requires { n.kernel_size; }) {
      auto at = [](const std::vector<int64_t>& v, size_t i) { return v[v.size() == 1 ? 0 : i]; };
      Shape window;
      for (size_t i = 0; i < rank; ++i) {
        window.push_back(at(n.kernel_size, i));
        const bool apart = n.stride.empty() || at(n.stride, i) == window[i];
        if (!apart || at(n.padding, i) != 0) return std::nullopt;
      }
      auto t = tiles(large, small, window);
      if (t) t->weight = 1.0 / static_cast<double>(n.divisor_override.value_or(numel_of(window)));
      return t;
    } else {
      Shape window;
      for (size_t a = large.size() - rank; a < large.size(); ++a) {
        if (small[a] == 0 || large[a] % small[a] != 0) return std::nullopt;
        window.push_back(large[a] / small[a]);
      }
      auto t = tiles(large, small, window);
      if (t) t->weight = 1.0 / static_cast<double>(numel_of(window));
      return t;
    }
  }

  template <class N>
  static Tangent down(N& n, const Tangent& t, const Shape& small) {
    if (const auto at = windows(n, t.shape, small)) return sum_tiles(t, *at);
    const Shape to = space_of(small, rank);
    return map_space(t, small, rank, [&](const Tensor& x) {
      if constexpr (requires { n.kernel_size; }) {
        return Pool::call(x, n.kernel_size, n.stride, n.padding, n.ceil_mode, n.count_include_pad,
                          n.divisor_override);
      } else {
        return Pool::call(x, c10::fromIntArrayRefSlow(to));
      }
    });
  }

  template <class N>
  static Tangent up(N& n, const Tangent& t, const Shape& large) {
    if (const auto at = windows(n, large, t.shape)) return spread_tiles(t, *at, large);
    return map_space(t, large, rank, [&](const Tensor& g) {
      Shape size{g.size(0), 1};
      const Shape space = space_of(large, rank);
      size.append(space.begin(), space.end());
      const Tensor image = at::zeros({}, g.options()).expand(size);  // for its shape
      if constexpr (requires { n.kernel_size; }) {
        return Back::call(g, image, n.kernel_size, n.stride, n.padding, n.ceil_mode, n.count_include_pad,
                          n.divisor_override);
      } else {
        return Back::call(g, image);
      }
    });
  }

  template <class N, class NodeOfBack>
  static void add(const char* name, const char* back) {
    with_backward<N, NodeOfBack>(
        name, back, [](auto& n, const Tangent& t, const Shape& to) { return down(n, t, to); },
        [](auto& n, const Tangent& t, const Shape& to) { return up(n, t, to); });
  }
};

// ---- elements at saved indices ------------------------------------------------------------------------

Shape flat(const Shape& shape, size_t rank) {
  Shape s(shape.begin(), shape.end() - rank);
  s.push_back(numel_of(space_of(shape, rank)));
  return s;
}

Tangent map_flat(const Tangent& t, const Shape& out, size_t rank, const AxesMap& f, const Tensor& index) {
  const Shape from = flat(t.shape, rank), to = flat(out, rank);
  const auto last = static_cast<int64_t>(from.size()) - 1;
  return view(map_axes(view(t, from), {last}, {to[last]}, f, index), out);
}

Tangent pick(Local& l, const Tangent& t, const Shape& out, size_t rank) {
  return map_flat(t, out, rank, gather_last, l.saved[0]);
}

Tangent place(Local& l, const Tangent& t, const Shape& out, size_t rank) {
  return map_flat(t, out, rank, scatter_last(flat(out, rank).back()), l.saved[0]);
}

template <class N>
Tensor indices(Local& l, size_t rank) {
  auto& n = node<N>(l);
  const Tensor index = [&] {
    if constexpr (requires { n.result1_; }) {
      return l.unpack(n.result1_);
    } else {
      return l.unpack(n.indices_);
    }
  }();
  const Shape shape(index.sizes().begin(), index.sizes().end());
  return index.reshape(flat(shape, rank));
}

// The node picks elements; or it places them.
template <class N, size_t rank>
void picking(const char* name) {
  Rule rule = linear([](Local& l, const Tangent& t) { return pick(l, t, l.out_shape[0], rank); },
                     [](Local& l, const Tangent& t) { return place(l, t, l.in_shape[0], rank); });
  rule.save = [](Local& l) { l.saved = {indices<N>(l, rank)}; };
  add_rule(name, std::move(rule));
}

template <class N, size_t rank>
void placing(const char* name) {
  Rule rule = linear([](Local& l, const Tangent& t) { return place(l, t, l.out_shape[0], rank); },
                     [](Local& l, const Tangent& t) { return pick(l, t, l.in_shape[0], rank); });
  rule.save = [](Local& l) { l.saved = {indices<N>(l, rank)}; };
  add_rule(name, std::move(rule));
}

}  // namespace

void pooling() {
  namespace ops = at::_ops;

  Average<ops::avg_pool2d, ops::avg_pool2d_backward,
          2>::add<gen::AvgPool2DBackward0, gen::AvgPool2DBackwardBackward0>("AvgPool2DBackward0",
                                                                            "AvgPool2DBackwardBackward0");
  Average<ops::avg_pool3d, ops::avg_pool3d_backward,
          3>::add<gen::AvgPool3DBackward0, gen::AvgPool3DBackwardBackward0>("AvgPool3DBackward0",
                                                                            "AvgPool3DBackwardBackward0");
  Average<ops::_adaptive_avg_pool2d, ops::_adaptive_avg_pool2d_backward, 2>::add<
      gen::AdaptiveAvgPool2DBackward0, gen::AdaptiveAvgPool2DBackwardBackward0>(
      "AdaptiveAvgPool2DBackward0", "AdaptiveAvgPool2DBackwardBackward0");
  Average<ops::_adaptive_avg_pool3d, ops::_adaptive_avg_pool3d_backward, 3>::add<
      gen::AdaptiveAvgPool3DBackward0, gen::AdaptiveAvgPool3DBackwardBackward0>(
      "AdaptiveAvgPool3DBackward0", "AdaptiveAvgPool3DBackwardBackward0");

  picking<gen::MaxPool2DWithIndicesBackward0, 2>("MaxPool2DWithIndicesBackward0");
  picking<gen::MaxPool3DWithIndicesBackward0, 3>("MaxPool3DWithIndicesBackward0");
  picking<gen::AdaptiveMaxPool2DBackward0, 2>("AdaptiveMaxPool2DBackward0");
  picking<gen::AdaptiveMaxPool3DBackward0, 3>("AdaptiveMaxPool3DBackward0");
  picking<gen::FractionalMaxPool2DBackward0, 2>("FractionalMaxPool2DBackward0");
  picking<gen::FractionalMaxPool3DBackward0, 3>("FractionalMaxPool3DBackward0");

  placing<gen::MaxUnpool2DBackward0, 2>("MaxUnpool2DBackward0");
  placing<gen::MaxUnpool3DBackward0, 3>("MaxUnpool3DBackward0");
  placing<gen::MaxPool2DWithIndicesBackwardBackward0, 2>("MaxPool2DWithIndicesBackwardBackward0");
  placing<gen::MaxPool3DWithIndicesBackwardBackward0, 3>("MaxPool3DWithIndicesBackwardBackward0");
  placing<gen::AdaptiveMaxPool2DBackwardBackward0, 2>("AdaptiveMaxPool2DBackwardBackward0");
  placing<gen::AdaptiveMaxPool3DBackwardBackward0, 3>("AdaptiveMaxPool3DBackwardBackward0");
  placing<gen::FractionalMaxPool2DBackwardBackward0, 2>("FractionalMaxPool2DBackwardBackward0");
  placing<gen::FractionalMaxPool3DBackwardBackward0, 3>("FractionalMaxPool3DBackwardBackward0");
}

}  // namespace hesse::rules
