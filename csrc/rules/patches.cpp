// Patches of an image as columns (unfold), and columns added up to an image (fold), its transpose. Patches
// side by side are a view; all else is a map along the two axes.
#include "resampling.h"
#include "shapes.h"
#include "spatial.h"

namespace hesse::rules {

namespace {

// An image [..., C, H, W] and its patches, as the node has them.
struct Patches {
  Shape image, split;  // split: [..., C, taps, columns]
  std::optional<Tiles> side_by_side;
  Geometry taps_first;  // of these
  std::vector<int64_t> kernel, dilation, padding, stride;

  template <class N>
  Patches(const N& n, const Shape& shape)
      : image(shape),
        kernel(per_axis(n.kernel_size)),
        dilation(per_axis(n.dilation)),
        padding(per_axis(n.padding)),
        stride(per_axis(n.stride)) {
    const size_t first = image.size() - 2;
    Shape count;
    for (size_t i = 0; i < 2; ++i) {
      const int64_t n_i = image[first + i] + 2 * padding[i] - dilation[i] * (kernel[i] - 1);
      count.push_back((n_i - 1) / stride[i] + 1);
    }
    split = Shape(image.begin(), image.begin() + first);
    split.append({kernel[0] * kernel[1], count[0] * count[1]});

    for (size_t i = 0; i < 2; ++i) {
      if (padding[i] != 0 || dilation[i] != 1 || stride[i] != kernel[i]) return;
    }
    Shape small = image;
    for (size_t i = 0; i < 2; ++i) small[first + i] = count[i];
    side_by_side = tiles(image, small, {kernel[0], kernel[1]});
    taps_first = {side_by_side->split, row_major(side_by_side->split), 0};
    for (Shape* s : {&taps_first.size, &taps_first.stride}) {  // [.., H', h, W', w] to [.., h, w, H', W']
      std::swap((*s)[first], (*s)[first + 1]);
      std::swap((*s)[first + 1], (*s)[first + 3]);
      std::swap((*s)[first + 2], (*s)[first + 3]);
    }
  }

  static std::vector<int64_t> per_axis(const std::vector<int64_t>& v) {
    return v.size() == 1 ? std::vector<int64_t>{v[0], v[0]} : v;
  }
  Shape axes() const {
    const auto rank = static_cast<int64_t>(image.size());
    return {rank - 2, rank - 1};
  }

  Tangent unfolded(const Tangent& t, const Shape& out) const {
    if (side_by_side) {
      return view(take(view(take(t, side_by_side->part), side_by_side->split), taps_first), out);
    }
    auto f = [this](const Tensor& rows, const Tensor&) {
      return at::im2col(rows.reshape({-1, 1, rows.size(2), rows.size(3)}), kernel, dilation, padding, stride)
          .reshape({rows.size(0), rows.size(1), split[split.size() - 2], split.back()});
    };
    return view(map_axes(t, axes(), space_of(split, 2), f), out);
  }

  Tangent folded(const Tangent& t) const {
    if (side_by_side) {
      const Tangent tiled = put(view(t, taps_first.size), taps_first, side_by_side->split);
      return put(view(tiled, side_by_side->part.size), side_by_side->part, image);
    }
    auto f = [this](const Tensor& rows, const Tensor&) {
      const Shape size = space_of(image, 2);
      return at::col2im(rows.reshape({-1, rows.size(2), rows.size(3)}), size, kernel, dilation, padding,
                        stride)
          .reshape({rows.size(0), rows.size(1), size[0], size[1]});
    };
    return map_axes(view(t, split), axes(), space_of(image, 2), f);
  }
};

}  // namespace

void patches() {
  using Unfold = gen::Im2ColBackward0;
  using Fold = gen::Col2ImBackward0;
  add_rule("Im2ColBackward0",
           linear(
               [](Local& l, const Tangent& t) {
                 return Patches(node<Unfold>(l), l.in_shape[0]).unfolded(t, l.out_shape[0]);
               },
               [](Local& l, const Tangent& t) { return Patches(node<Unfold>(l), l.in_shape[0]).folded(t); }));
  add_rule("Col2ImBackward0",
           linear([](Local& l, const Tangent& t) { return Patches(node<Fold>(l), l.out_shape[0]).folded(t); },
                  [](Local& l, const Tangent& t) {
                    return Patches(node<Fold>(l), l.out_shape[0]).unfolded(t, l.in_shape[0]);
                  }));
}

}  // namespace hesse::rules
