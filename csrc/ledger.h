// What a sweep costs: verbs write it, the sweep reads it for chunking, `explain` prints it.
#pragma once

#include <c10/util/Exception.h>

#include <cstdint>
#include <functional>
#include <set>
#include <string>

namespace hesse {

struct Ledger {
  int64_t core_elements = 0;  // elements of every factor that depends on the seed, as allocated
  int64_t flops = 0;          // multiply-adds of products and reductions with seeds, times two
  int64_t gemms = 0;          // matrix products that carry seeds
  int64_t step_bytes = 0;     // seed-sized bytes allocated in the current step
  int64_t live_bytes = 0;     // seed-sized bytes alive when the current step began
  int64_t kept_bytes = 0;     // of these, what rules keep from push to curve
  int64_t widest_bytes = 0;
  int64_t widest_terms = 0;
  int64_t budget_bytes = 0;  // of all that is alive; 0: no limit
  int64_t piece_bytes = 0;   // of one allocation; 0: no limit
  // How much more than what is alive there is room for, asked when the budget is exceeded: once, as to ask a
  // device takes time.
  std::function<int64_t()> room;
  const char* op = "";  // the step that runs now
  std::set<std::string> densified;

  // Call before an allocation of seed-sized memory; throws ChunkTooLarge when a limit does not allow it.
  void reserve(int64_t elements, int64_t element_size);
  // Of memory that is no factor of a term.
  void take(int64_t bytes);
};

// Memory within a verb, for as long as this lives. It counts when it is there already.
class Passing {
 public:
  Passing() = default;
  ~Passing();
  Passing(const Passing&) = delete;
  Passing& operator=(const Passing&) = delete;
  void add(int64_t bytes);

 private:
  int64_t bytes_ = 0;
};

struct ChunkTooLarge {
  int64_t wanted_bytes;
  int64_t allowed_bytes;
};

// Whether an error says that there is no memory left: PyTorch's allocator on a GPU has a type for that, the
// libraries there and the CPU's allocator only words.
bool is_out_of_memory(const c10::Error& e);

// The ledger of the sweep that runs on this thread (a scratch one outside a sweep).
Ledger& ledger();

class LedgerScope {
 public:
  explicit LedgerScope(Ledger& l);
  ~LedgerScope();
  LedgerScope(const LedgerScope&) = delete;
  LedgerScope& operator=(const LedgerScope&) = delete;

 private:
  Ledger* previous_;
};

}  // namespace hesse
