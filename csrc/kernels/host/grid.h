// Runs the bodies of kernels on the host: blocks one after the other, from the last, and threads as a loop,
// every other one from the end, so that nothing can rest on their order.
#pragma once

#include "kernels/bodies/block.h"

namespace hesse::kernels::host {

namespace {

template <class Shared>
class Block {
 public:
  Block(int64_t at, int64_t count) : at_(at), count_(count) {}
  Shared shared;
  int64_t at() const { return at_; }
  int64_t count() const { return count_; }
  template <class F>
  void each(F f) {
    backwards_ = !backwards_;
    for (int t = 0; t < kThreads; ++t) f(backwards_ ? kThreads - 1 - t : t);
  }
  void sync() {}

 private:
  int64_t at_, count_;
  bool backwards_ = false;
};

struct Grid {
  // Few blocks, so that each has to go round its loop.
  template <class Body>
  void run(int64_t blocks, const Body& body) const {
    constexpr int64_t most = 3;
    blocks = std::min(blocks, most);
    for (int64_t i = blocks; i-- > 0;) {
      Block<typename Body::Shared> block(i, blocks);
      body(block);
    }
  }
};

}  // namespace

}  // namespace hesse::kernels::host
