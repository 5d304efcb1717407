#include "kernels/cpu/backend.h"
#include "kernels/cpu/combine_loops.h"

#include <ATen/Parallel.h>
#include <c10/util/SmallVector.h>

#include <algorithm>
#include <atomic>
#include <cstring>
#include <optional>

namespace hesse::kernels::cpu {

namespace {

constexpr int64_t kShort = 8;  // a loop of fewer turns costs more than what it does

using Axes = c10::SmallVector<Axis, 8>;

enum class Instructions { baseline, avx2, avx512 };

Instructions widest() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
      __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
      __builtin_cpu_supports("fma"))
    return Instructions::avx512;
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) return Instructions::avx2;
#endif
  return Instructions::baseline;
}

std::atomic<Instructions> instructions{widest()};

template <typename T>
void run(const Loops<T>& loops) {
  switch (instructions.load(std::memory_order_relaxed)) {
    case Instructions::avx512:
      return run_avx512(loops);
    case Instructions::avx2:
      return run_avx2(loops);
    case Instructions::baseline:
      return run_baseline(loops);
  }
}

// The innermost loop comes last: the longest smooth one; where none is long, the one that writes to
// neighbours, or if that is short the next.
Axes with_inner_loop(const Pass& pass) {
  Axes axes(pass.axes, pass.axes + pass.rank);
  auto smooth = [](const Axis& x) {
    return (x.out == 0 || x.out == 1) && (x.a == 0 || x.a == 1) && (x.b == 0 || x.b == 1);
  };
  size_t inner = axes.size() - 1;
  int64_t longest = kShort - 1;
  for (size_t d = 0; d < axes.size(); ++d) {
    if (smooth(axes[d]) && axes[d].n > longest) longest = axes[inner = d].n;
  }
  if (longest < kShort && inner > 0 && axes[inner].n < kShort && axes[inner - 1].n > axes[inner].n) --inner;
  std::rotate(axes.begin() + inner, axes.begin() + inner + 1, axes.end());
  return axes;
}

// A transposing pass: the innermost axis jumps through a factor, and another one reads it smoothly but writes
// with jumps. Cut into tiles, what is read stays in the cache until all of it is used. Returns that other
// axis.
std::optional<size_t> transposed_axis(const Axes& axes) {
  constexpr int64_t line = 16;
  const Axis& inner = axes.back();
  if (inner.out == 0 || inner.n < line || std::max(inner.a, inner.b) < line) return std::nullopt;
  for (size_t d = 0; d + 1 < axes.size(); ++d) {
    const Axis& x = axes[d];
    if (x.n >= line && x.a <= 1 && x.b <= 1 && x.a + x.b > 0 && x.out > inner.out) return d;
  }
  return std::nullopt;
}

template <typename T>
void run_tiled(const Loops<T>& loops, size_t across) {
  constexpr int64_t rows = 16, columns = 64;
  const size_t inner = loops.rank - 1;
  Axes axes(loops.axes, loops.axes + loops.rank);
  const int64_t n = axes[across].n, m = axes[inner].n;
  for (int64_t i = 0; i < n; i += rows) {
    for (int64_t j = 0; j < m; j += columns) {
      axes[across].n = std::min(rows, n - i);
      axes[inner].n = std::min(columns, m - j);
      Loops<T> tile = loops;
      tile.axes = axes.data();
      tile.out += i * axes[across].out + j * axes[inner].out;
      tile.a += i * axes[across].a + j * axes[inner].a;
      tile.b += i * axes[across].b + j * axes[inner].b;
      run(tile);
    }
  }
}

template <typename T>
void run_all(const Loops<T>& loops) {
  const auto across = transposed_axis(Axes(loops.axes, loops.axes + loops.rank));
  across ? run_tiled(loops, *across) : run(loops);
}

void zero(void* out, int64_t bytes) {
  constexpr int64_t worth_a_thread = int64_t{1} << 18;
  at::parallel_for(0, bytes, worth_a_thread, [out](int64_t begin, int64_t end) {
    std::memset(static_cast<char*>(out) + begin, 0, static_cast<size_t>(end - begin));
  });
}

int64_t written_by(const Axis* axes, size_t rank) {
  int64_t n = 1;
  for (size_t d = 0; d < rank; ++d) n *= axes[d].out == 0 ? 1 : axes[d].n;
  return n;
}

template <typename T>
void combine_of(const Pass& pass) {
  static constexpr T one = 1;
  const Axes axes = with_inner_loop(pass);
  bool sums_outside = false;
  for (size_t d = 0; d + 1 < axes.size(); ++d) sums_outside = sums_outside || axes[d].out == 0;
  T* out = static_cast<T*>(pass.out);
  if (pass.write && sums_outside) zero(out, written_by(axes.data(), axes.size()) * sizeof(T));
  const Loops<T> all{out,
                     pass.a ? static_cast<const T*>(pass.a) : &one,
                     pass.b ? static_cast<const T*>(pass.b) : &one,
                     axes.data(),
                     axes.size(),
                     static_cast<T>(pass.alpha),
                     pass.write && !sums_outside};
  // Threads share the outermost axis that is written along.
  constexpr int64_t worth_a_thread = 65536;
  const auto shared = std::find_if(axes.begin(), axes.end(), [](const Axis& x) { return x.out != 0; });
  int64_t work = 1;
  for (const Axis& x : axes) work *= x.n;
  if (work < 2 * worth_a_thread || shared == axes.end()) return run_all(all);
  const int64_t grain = std::max<int64_t>(1, worth_a_thread * shared->n / work);
  at::parallel_for(0, shared->n, grain, [&](int64_t begin, int64_t end) {
    Axes mine = axes;
    mine[shared - axes.begin()].n = end - begin;
    Loops<T> part = all;
    part.out += begin * shared->out;
    part.a += begin * shared->a;
    part.b += begin * shared->b;
    part.axes = mine.data();
    run_all(part);
  });
}

}  // namespace

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names{"baseline", "avx2", "avx512"};
  names.resize(static_cast<size_t>(widest()) + 1);
  return names;
}

void use_instruction_set(const std::string& name) {
  const std::vector<std::string> names = instruction_sets();
  const auto it = std::find(names.begin(), names.end(), name);
  TORCH_CHECK(it != names.end(), "hesse: this processor does not have the instruction set ", name);
  instructions = static_cast<Instructions>(it - names.begin());
}

void combine(const Pass& pass) {
  if (pass.type == Type::f32) return combine_of<float>(pass);
  combine_of<double>(pass);
}

// A part that fills `out` is written, and what else there is added.
void write_sum(const Sum& sum) {
  const int64_t bytes = sum.type == Type::f32 ? sizeof(float) : sizeof(double);
  const Pass* whole = std::find_if(sum.parts, sum.parts + sum.count, [&](const Pass& p) {
    const bool sums =
        std::any_of(p.axes, p.axes + p.rank, [](const Axis& x) { return x.n > 1 && x.out == 0; });
    return p.out == sum.out && !sums && written_by(p.axes, p.rank) == sum.n;
  });
  if (whole == sum.parts + sum.count) {
    zero(sum.out, sum.n * bytes);
  } else {
    Pass first = *whole;
    first.write = true;
    combine(first);
  }
  for (const Pass* p = sum.parts; p != sum.parts + sum.count; ++p) {
    if (p != whole) combine(*p);
  }
}

}  // namespace hesse::kernels::cpu
