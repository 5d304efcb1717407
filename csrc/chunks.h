// The seeds of a whole Hessian, and how a sweep of many is cut into chunks that fit.
#pragma once

#include "sweep.h"

#include <optional>
#include <utility>

namespace hesse {

struct SweepReport {
  Ledger ledger;
  int64_t chunk_size = 0;
  int64_t chunks = 0;
};

// The elements of all inputs one after another: rows of the identity, and of the Hessian.
struct Layout {
  std::vector<int64_t> size, begin;  // per input: elements, first seed
  int64_t total = 0;

  explicit Layout(const std::vector<Tensor>& inputs);
  int64_t end(size_t i) const { return begin[i] + size[i]; }
  int input_of(int64_t k) const;
};

// Rows [begin, end) of the identity, as the seeds [0, end - begin).
Seeds identity(const Linearization& lin, const Layout& layout, int64_t begin, int64_t end);
// The same for any rows in any order: seed r is row rows[r].
Seeds identity(const Linearization& lin, const Layout& layout, std::vector<int64_t> rows);

// Sweeps `total` seeds, `size` at a time, or as many as the budget allows where it is not given.
struct Chunks {
  c10::Device device = at::kCPU;
  std::optional<int64_t> size;
  std::optional<int64_t> most;
  std::optional<int64_t> budget;  // bytes that a sweep may hold; on a device it may ask for more
  int64_t result_bytes = 0;       // what the results of all chunks take
  int64_t least = 1;              // fits whatever it takes
  bool cached = false;            // small enough for the processor's cache
  // Where a chunk of about `size` seeds from `begin` on best ends; absent: there.
  std::function<int64_t(int64_t begin, int64_t size)> cut;
};
Chunks chunks_on(c10::Device device);
using Stretch = std::function<void(int64_t begin, int64_t end)>;
void run_chunks(int64_t begin, int64_t end, const Chunks& chunks, SweepReport& report, const Stretch& sweep,
                const Stretch& consume);
// Runs `sweep(begin, end)`, again with fewer seeds where that does not fit; what it returns goes to
// `consume(result, begin, end)`. What is added to results there cannot be taken back: an error is final.
template <class Sweep, class Consume>
void in_chunks(int64_t begin, int64_t end, const Chunks& chunks, SweepReport& report, Sweep sweep,
               Consume consume) {
  using Result = decltype(sweep(begin, end));
  std::optional<Result> result;
  run_chunks(
      begin, end, chunks, report, [&](int64_t from, int64_t to) { result = sweep(from, to); },
      [&](int64_t from, int64_t to) { consume(*std::exchange(result, std::nullopt), from, to); });
}

// Chunks of rows of the identity: they end at the border of an input or of one of its axes, so that their
// seeds are few boxes.
Chunks chunks_of(const Linearization& lin, const Layout& layout, std::optional<int64_t> size);

// Runs a sweep whose seeds cannot be cut; false where that does not fit.
bool fits(const Chunks& chunks, SweepReport& report, const std::function<void()>& sweep);

}  // namespace hesse
