#include "ledger.h"

#include <algorithm>
#include <utility>

namespace hesse {

namespace {
thread_local Ledger scratch;
thread_local Ledger* current = nullptr;
}  // namespace

Ledger& ledger() {
  if (current) return *current;
  scratch = Ledger{};
  return scratch;
}

bool is_out_of_memory(const c10::Error& e) {
  if (dynamic_cast<const c10::OutOfMemoryError*>(&e)) return true;
  const std::string words = e.what_without_backtrace();
  constexpr const char* signs[] = {"DefaultCPUAllocator", "CUDA error: out of memory", "STATUS_ALLOC_FAILED"};
  return std::any_of(std::begin(signs), std::end(signs),
                     [&words](const char* sign) { return words.find(sign) != std::string::npos; });
}

LedgerScope::LedgerScope(Ledger& l) : previous_(current) { current = &l; }
LedgerScope::~LedgerScope() { current = previous_; }

void Ledger::reserve(int64_t elements, int64_t element_size) {
  const int64_t piece = elements * element_size;
  if (piece_bytes > 0 && piece > piece_bytes) throw ChunkTooLarge{piece, piece_bytes};
  core_elements += elements;
  take(piece);
}

void Ledger::take(int64_t bytes) {
  step_bytes += bytes;
  const int64_t wanted = live_bytes + step_bytes;
  widest_bytes = std::max(widest_bytes, wanted);
  if (budget_bytes > 0 && wanted > budget_bytes && room) {
    budget_bytes = std::max(budget_bytes, wanted - bytes + std::exchange(room, {})());
  }
  if (budget_bytes > 0 && wanted > budget_bytes) throw ChunkTooLarge{wanted, budget_bytes};
}

Passing::~Passing() { ledger().step_bytes -= bytes_; }

void Passing::add(int64_t bytes) {
  bytes_ += bytes;
  ledger().take(bytes);
}

}  // namespace hesse
