// Pooling is linear in the image once the saved indices are known: a map on rows and its transpose.
#include "elementwise.h"

namespace hesse::rules {

namespace {

// Rows [k, *S] as one batch of images [k B, C, H, W] and back.
template <class F>
Tensor on_images(const Tensor& rows, c10::IntArrayRef shape, c10::IntArrayRef out, F f) {
  Shape images{-1};
  images.append(shape.end() - 3, shape.end());
  Shape result{rows.size(0)};
  result.append(out.begin(), out.end());
  return f(rows.reshape(images)).reshape(result);
}

}  // namespace

void pooling() {
  {
    using N = gen::AvgPool2DBackward0;
    Rule rule;
    rule.push = [](Local& l, const Tangents& dx) -> Tangents {
      auto& n = node<N>(l);
      return {map_rows(dx[0], l.out_shape[0], [&](const Tensor& rows) {
        return on_images(rows, l.in_shape[0], l.out_shape[0], [&](const Tensor& x) {
          return at::avg_pool2d(x, n.kernel_size, n.stride, n.padding, n.ceil_mode, n.count_include_pad,
                                n.divisor_override);
        });
      })};
    };
    rule.pull = [](Local& l, const Tangents& dgy) -> Tangents {
      auto& n = node<N>(l);
      return {map_rows(dgy[0], l.in_shape[0], [&](const Tensor& rows) {
        return on_images(rows, l.out_shape[0], l.in_shape[0], [&](const Tensor& g) {
          Shape images(l.in_shape[0].end() - 3, l.in_shape[0].end());
          images.insert(images.begin(), g.size(0));
          return at::avg_pool2d_backward(g, at::empty(images, g.options()), n.kernel_size, n.stride,
                                         n.padding, n.ceil_mode, n.count_include_pad, n.divisor_override);
        });
      })};
    };
    add_rule("AvgPool2DBackward0", rule);
  }
  {
    using N = gen::MaxPool2DWithIndicesBackward0;
    // Per image and channel: [..., H W] gathered at the index of each maximum.
    auto flat = [](const Shape& shape) {
      Shape s(shape.begin(), shape.end() - 2);
      s.push_back(shape[shape.size() - 2] * shape[shape.size() - 1]);
      return s;
    };
    auto index = [flat](Local& l, const Tensor& rows) {
      Shape size{rows.size(0)};
      const Shape s = flat(l.out_shape[0]);
      size.append(s.begin(), s.end());
      return l.saved[0].reshape(s).unsqueeze(0).expand(size);
    };
    Rule rule;
    rule.save = [](Local& l) { l.saved = {l.unpack(node<N>(l).result1_)}; };
    rule.push = [flat, index](Local& l, const Tangents& dx) -> Tangents {
      const Shape shape = flat(l.in_shape[0]);
      return {view(map_rows(view(dx[0], shape), flat(l.out_shape[0]),
                            [&](const Tensor& rows) { return rows.gather(-1, index(l, rows)); }),
                   l.out_shape[0])};
    };
    rule.pull = [flat, index](Local& l, const Tangents& dgy) -> Tangents {
      const Shape shape = flat(l.in_shape[0]);
      return {view(map_rows(view(dgy[0], flat(l.out_shape[0])), shape,
                            [&](const Tensor& rows) {
                              Shape size{rows.size(0)};
                              size.append(shape.begin(), shape.end());
                              return at::zeros(size, rows.options()).scatter_add(-1, index(l, rows), rows);
                            }),
                   l.in_shape[0])};
    };
    add_rule("MaxPool2DWithIndicesBackward0", rule);
  }
}

}  // namespace hesse::rules
