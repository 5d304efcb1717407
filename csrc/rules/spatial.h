// What acts on the last axes of a value, its images: the axes before them (batch, channels) are carried.
#pragma once

#include "elementwise.h"

#include <optional>

namespace hesse::rules {

// The sizes of the last `rank` axes.
inline Shape space_of(const Shape& shape, size_t rank) { return Shape(shape.end() - rank, shape.end()); }

// f on images [n, 1, *space].
template <class F>
Tangent map_space(const Tangent& t, const Shape& out, size_t rank, F f) {
  Shape axes;
  for (size_t a = out.size() - rank; a < out.size(); ++a) axes.push_back(static_cast<int64_t>(a));
  const Shape from = space_of(t.shape, rank), to = space_of(out, rank);
  auto on_rows = [&](const Tensor& rows, const Tensor&) {
    Shape images{rows.size(0) * rows.size(1), 1}, result{rows.size(0), rows.size(1)};
    images.append(from.begin(), from.end());
    result.append(to.begin(), to.end());
    return f(rows.reshape(images)).reshape(result);
  };
  return map_axes(t, axes, to, on_rows);
}

// Windows side by side that all lie within the image: [..., H', h, W', w] of its leading part.
struct Tiles {
  Geometry part;  // of the image that they cover
  Shape split;
  Shape inner;  // the axes h and w
  double weight = 1.0;
};

// Windows of these sizes on the last axes, as many as `small` has; none where they do not fit in.
inline std::optional<Tiles> tiles(const Shape& large, const Shape& small, const Shape& window) {
  const size_t first = large.size() - window.size();
  Tiles t{{large, row_major(large), 0}, Shape(large.begin(), large.begin() + first), {}, 1.0};
  for (size_t i = 0; i < window.size(); ++i) {
    const int64_t count = small[first + i];
    if (count * window[i] > large[first + i]) return std::nullopt;
    t.part.size[first + i] = count * window[i];
    t.split.append({count, window[i]});
    t.inner.push_back(static_cast<int64_t>(first + 2 * i + 1));
  }
  return t;
}

// The weighted sum of each window, and its transpose.
inline Tangent sum_tiles(const Tangent& t, const Tiles& at) {
  return scale(sum(view(take(t, at.part), at.split), at.inner, false), at.weight);
}
inline Tangent spread_tiles(const Tangent& t, const Tiles& at, const Shape& large) {
  Shape kept = at.split;
  for (int64_t a : at.inner) kept[a] = 1;
  const Tangent wide = view(expand(view(t, kept), at.split), at.part.size);
  return scale(put(wide, at.part, large), at.weight);
}

// A linear map of the first input. Of others, which the backward of a pooling takes for their shapes, the
// result is independent.
using Map = std::function<Tangent(Local&, const Tangent&)>;
inline Rule linear(Map push, Map pull) {
  Rule rule;
  rule.push = [push](Local& l, const Tangents& dx) -> Tangents {
    if (dx[0].zero()) return Tangents(1);
    return {push(l, dx[0])};
  };
  rule.pull = [pull](Local& l, const Tangents& dgy) {
    Tangents dgx(l.inputs());
    if (l.wanted[0]) dgx[0] = pull(l, dgy[0]);
    return dgx;
  };
  return rule;
}

// The names of a node and of the node of its backward: where one pushes, the other pulls. down(node, tangent,
// shape) and up(node, tangent, shape) are the op and its transpose, to values of this shape.
template <class N, class Back, class Down, class Up>
void with_backward(const char* name, const char* back, Down down, Up up) {
  add_rule(name, linear([down](Local& l, const Tangent& t) { return down(node<N>(l), t, l.out_shape[0]); },
                        [up](Local& l, const Tangent& t) { return up(node<N>(l), t, l.in_shape[0]); }));
  add_rule(back,
           linear([up](Local& l, const Tangent& t) { return up(node<Back>(l), t, l.out_shape[0]); },
                  [down](Local& l, const Tangent& t) { return down(node<Back>(l), t, l.in_shape[0]); }));
}

}  // namespace hesse::rules
